local suspended = obj.spec ~= nil and obj.spec.suspend == true

local actions = {}
actions["prove-now"] = {
  ["iconClass"] = "fa fa-fw fa-check-double",
  ["displayName"] = "Prove every transport and pod now"
}
actions["restart"] = {
  ["iconClass"] = "fa fa-fw fa-redo",
  ["displayName"] = "Restart the pods, one after the other",
  ["disabled"] = suspended
}
actions["suspend"] = {
  ["iconClass"] = "fa fa-fw fa-pause",
  ["displayName"] = "Write no children until resumed",
  ["disabled"] = suspended
}
actions["resume"] = {
  ["iconClass"] = "fa fa-fw fa-play",
  ["displayName"] = "Write children again",
  ["disabled"] = not suspended
}
return actions
