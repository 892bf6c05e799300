local os = require("os")
if obj.metadata.annotations == nil then
  obj.metadata.annotations = {}
end
obj.metadata.annotations["realtime-operator.dev/restarted-at"] = os.date("!%Y-%m-%dT%H:%M:%SZ")
return obj
