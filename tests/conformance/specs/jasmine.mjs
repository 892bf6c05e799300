// Runs a bundle of specs under Jasmine in this process and prints a line of JSON for each, then one for all.
import { createRequire } from "node:module";

const require = createRequire(import.meta.url);
const core = require("jasmine-core");
const env = core.boot(core).getEnv();
const print = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);

env.configure({ random: false, failSpecWithNoExpectations: false });
env.addReporter({
  specDone: ({ fullName, status, failedExpectations }) =>
    print({ name: fullName, status, failures: failedExpectations.map(({ message }) => message) }),
  jasmineDone: ({ overallStatus, incompleteReason, failedExpectations }) =>
    print({ overall: overallStatus, why: incompleteReason, failures: failedExpectations.map(({ message }) => message) }),
});
// The specs mention a variable that only a browser has.
globalThis.Dependencies = undefined;
require(process.argv[2]);
await env.execute();
process.exit(0);
