-- Health of a ServePipeline for Argo CD: key `resource.customizations.health.servepipe.dev_ServePipeline` of the
-- ConfigMap argocd-cm. See docs/gitops.md. Needs no libraries that Argo CD does not open by itself.
local function health(status, message)
  return { status = status, message = message }
end

if obj.metadata.deletionTimestamp ~= nil then
  return health("Progressing", "is being deleted")
end

local status = obj.status
if status == nil or status.conditions == nil then
  return health("Progressing", "no operator has looked at it yet")
end
if status.observedGeneration ~= nil and status.observedGeneration ~= obj.metadata.generation then
  return health("Progressing", "the operator has not seen the latest change yet")
end

local conditions = {}
for _, condition in ipairs(status.conditions) do
  conditions[condition.type] = condition
end

local function is_true(name)
  return conditions[name] ~= nil and conditions[name].status == "True"
end

local function told(name)
  local condition = conditions[name]
  if condition == nil then
    return nil
  end
  return (condition.reason or name) .. ": " .. (condition.message or "")
end

-- Somebody has to do something. Whatever served before goes on, which `Available` says.
if is_true("Stalled") then
  return health("Degraded", told("Stalled"))
end
if is_true("Reconciling") then
  return health("Progressing", told("Reconciling"))
end
if conditions.Ready ~= nil and conditions.Ready.reason == "Suspended" then
  return health("Suspended", told("Ready"))
end
if is_true("Ready") then
  return health("Healthy", told("Ready"))
end
return health("Progressing", told("Ready") or "not ready yet")
