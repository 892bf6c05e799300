// A double of Amazon Route 53 with one hosted zone, for external-dns: lists and changes record sets as API 2013-04-01 does, and
// keeps every change. It refuses what Route 53 refuses of these: another zone, a record that exists, a deletion with other
// values, a CNAME beside another type. It checks no signature.
import { once } from "node:events";
import { createServer } from "node:http";

const API = "/2013-04-01/hostedzone";
const NAMESPACE = "https://route53.amazonaws.com/doc/2013-04-01/";
const ZONE_ID = "ZTEST";

const isText = (value) => typeof value === "string";

/** The text of the first element of a name, without its entities. */
function text(xml, name) {
  const found = new RegExp(`<${name}>([^<]*)</${name}>`).exec(xml);
  return found?.[1].replaceAll("&quot;", '"').replaceAll("&#34;", '"').replaceAll("&lt;", "<").replaceAll("&gt;", ">").replaceAll("&amp;", "&");
}

/** The inner texts of all elements of a name. */
const elements = (xml, name) => [...xml.matchAll(new RegExp(`<${name}>(.*?)</${name}>`, "gs"))].map(([, inner]) => inner);

const escape = (value) => value.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll('"', "&quot;");

/** A record set of a request, with its XML, which an answer repeats. */
function parseRecord(xml) {
  const values = elements(xml, "ResourceRecord").map((record) => text(record, "Value"));
  const name = text(xml, "Name").replace(/\.?$/, ".");
  return { name, type: text(xml, "Type"), ttl: Number(text(xml, "TTL")), identifier: text(xml, "SetIdentifier"), weight: text(xml, "Weight"), values };
}

function printRecord({ name, type, ttl, identifier, weight, values }) {
  const optional = [["SetIdentifier", identifier], ["Weight", weight]].filter(([, value]) => isText(value));
  const records = values.map((value) => `<ResourceRecord><Value>${escape(value)}</Value></ResourceRecord>`).join("");
  const policy = optional.map(([tag, value]) => `<${tag}>${escape(value)}</${tag}>`).join("");
  return `<ResourceRecordSet><Name>${name}</Name><Type>${type}</Type>${policy}<TTL>${ttl}</TTL><ResourceRecords>${records}</ResourceRecords></ResourceRecordSet>`;
}

const keyOf = ({ name, type, identifier }) => `${name} ${type} ${identifier ?? ""}`;

/** The records after the changes, or a sentence that refuses all of them, as Route 53 does. */
function applyChanges(records, changes) {
  const next = new Map(records);
  for (const { action, record } of changes) {
    const [key, before] = [keyOf(record), next.get(keyOf(record))];
    if (action === "CREATE" && before) return { refusal: `${key} already exists` };
    if (action === "DELETE") {
      if (!before || printRecord(before) !== printRecord(record)) return { refusal: `${key} was not found with these values` };
      next.delete(key);
    } else {
      next.set(key, record);
    }
  }
  for (const { name, type } of next.values()) {
    const others = [...next.values()].filter((other) => other.name === name && other.type !== type);
    if (type === "CNAME" && others.length > 0) return { refusal: `a CNAME ${name} is beside another type` };
  }
  return { next };
}

/**
 * Starts the double on loopback with a hosted zone. `records()` are those that exist, `changes` every change that was made with
 * its time, `reads()` how often the records were listed.
 */
export async function startRoute53(domain) {
  let records = new Map();
  let reads = 0;
  const changes = [];
  const refusals = [];
  const list = () => {
    reads += 1;
    const sorted = [...records.values()].sort((a, b) => keyOf(a).localeCompare(keyOf(b)));
    return `<ListResourceRecordSetsResponse xmlns="${NAMESPACE}"><ResourceRecordSets>${sorted.map(printRecord).join("")}</ResourceRecordSets><IsTruncated>false</IsTruncated><MaxItems>300</MaxItems></ListResourceRecordSetsResponse>`;
  };
  const zones = () =>
    `<ListHostedZonesResponse xmlns="${NAMESPACE}"><HostedZones><HostedZone><Id>/hostedzone/${ZONE_ID}</Id><Name>${domain}.</Name><CallerReference>1</CallerReference><Config><PrivateZone>false</PrivateZone></Config></HostedZone></HostedZones><IsTruncated>false</IsTruncated><MaxItems>100</MaxItems></ListHostedZonesResponse>`;
  /** Makes all of these changes; returns the sentence that refuses them, if one does. */
  const makeChanges = (asked) => {
    const foreign = asked.find(({ record }) => !record.name.endsWith(`${domain}.`));
    const { next, refusal } = foreign ? { refusal: `${foreign.record.name} is not in the zone` } : applyChanges(records, asked);
    if (!next) {
      refusals.push(refusal);
      return refusal;
    }
    records = next;
    changes.push(...asked.map((one) => ({ ...one, at: Date.now() })));
    return undefined;
  };
  const change = (body) => {
    const refusal = makeChanges(elements(body, "Change").map((xml) => ({ action: text(xml, "Action"), record: parseRecord(xml) })));
    if (refusal) {
      return { status: 400, body: `<ErrorResponse xmlns="${NAMESPACE}"><Error><Type>Sender</Type><Code>InvalidChangeBatch</Code><Message>${escape(refusal)}</Message></Error></ErrorResponse>` };
    }
    return { status: 200, body: `<ChangeResourceRecordSetsResponse xmlns="${NAMESPACE}"><ChangeInfo><Id>/change/C1</Id><Status>INSYNC</Status><SubmittedAt>2026-01-01T00:00:00Z</SubmittedAt></ChangeInfo></ChangeResourceRecordSetsResponse>` };
  };
  const answer = (method, path, body) => {
    if (method === "GET" && path === API) return { status: 200, body: zones() };
    if (path !== `${API}/${ZONE_ID}/rrset`) return { status: 404, body: `<ErrorResponse xmlns="${NAMESPACE}"><Error><Code>NoSuchHostedZone</Code><Message>${escape(path)}</Message></Error></ErrorResponse>` };
    return method === "POST" ? change(body) : { status: 200, body: list() };
  };
  const server = createServer((request, response) => {
    const chunks = [];
    request.on("data", (chunk) => chunks.push(chunk));
    request.on("end", () => {
      const path = new URL(request.url, "http://route53").pathname.replace(/\/$/, "");
      const { status, body } = answer(request.method, path, Buffer.concat(chunks).toString());
      response.writeHead(status, { "content-type": "text/xml" }).end(`<?xml version="1.0" encoding="UTF-8"?>\n${body}`);
    });
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    url: `http://127.0.0.1:${server.address().port}`,
    changes,
    refusals,
    reads: () => reads,
    records: () => [...records.values()],
    /** Creates or replaces a record, as another writer of the zone does. */
    put: (record) => void records.set(keyOf(record), record),
    /** Makes the changes of a batch in the form of the AWS command line, as a person does. */
    submit({ Changes }) {
      const asked = Changes.map(({ Action: action, ResourceRecordSet: { Name, Type, TTL, SetIdentifier, Weight, ResourceRecords } }) => ({
        action,
        record: { name: Name.replace(/\.?$/, "."), type: Type, ttl: TTL, identifier: SetIdentifier, weight: String(Weight), values: ResourceRecords.map(({ Value }) => Value) },
      }));
      const refusal = makeChanges(asked);
      if (refusal) throw new Error(refusal);
    },
    stop() {
      server.closeAllConnections();
      server.close();
    },
  };
}
