-- Healthy once clients' events arrived as webhooks, by the operator's own verdict on this generation.
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

local ready, stalled, reconciling = found["Ready"], found["Stalled"], found["Reconciling"]
if stalled ~= nil and stalled.status == "True" then
  return {status = "Degraded", message = stalled.message}
end
if ready == nil then
  return waiting
end
if ready.status == "True" then
  if obj.spec.suspend == true then
    return {status = "Suspended", message = "spec.suspend is true: " .. ready.message}
  end
  return {status = "Healthy", message = ready.message}
end
-- Argo CD has no timeout for a health of its own: the gate's deadline is one. Journeys go on after it.
local in_progress = reconciling ~= nil and reconciling.status == "True" and ready.reason ~= "DeadlineExceeded"
if ready.status == "False" and not in_progress then
  return {status = "Degraded", message = ready.reason .. ": " .. ready.message}
end
return {status = "Progressing", message = ready.reason .. ": " .. ready.message}
