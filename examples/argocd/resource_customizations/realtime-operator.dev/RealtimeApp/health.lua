-- Healthy once every pod of every cluster that serves the app has loaded it.
local waiting = {status = "Progressing", message = "waiting for the operator to look at this generation"}
if obj.status == nil or obj.status.observedGeneration ~= obj.metadata.generation then
  return waiting
end

local found = {}
for _, condition in ipairs(obj.status.conditions or {}) do
  if condition.observedGeneration == nil or condition.observedGeneration == obj.metadata.generation then
    found[condition.type] = condition
  end
end

local accepted, ready = found["Accepted"], found["Ready"]
if ready == nil then
  return waiting
end
if ready.status == "True" then
  return {status = "Healthy", message = ready.message}
end
-- The cluster of the same sync may not be there yet; a pod may not have loaded the app yet.
if accepted ~= nil and accepted.status == "False" and accepted.reason ~= "NoCluster" then
  return {status = "Degraded", message = accepted.reason .. ": " .. accepted.message}
end
return {status = "Progressing", message = ready.reason .. ": " .. ready.message}
