//! What must not leave a cluster in a bundle: values of environment variables and header fields, arguments, and copies of them. Pure.

use serde_json::Value;

/// Stands where something was.
const REDACTED: &str = "(redacted by netdiag)";

/// Takes out of an object what may be secret. Names stay: they say what a person may have to look at.
pub(super) fn redact(object: &mut Value) {
    if let Some(annotations) = object.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        // kubectl apply keeps the whole manifest here, with its values.
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
    for spec in ["/spec", "/spec/template/spec"] {
        for list in ["containers", "initContainers", "ephemeralContainers"] {
            let containers = object.pointer_mut(&format!("{spec}/{list}")).and_then(Value::as_array_mut);
            containers.into_iter().flatten().for_each(container);
        }
    }
    let rules = object.pointer_mut("/spec/rules").and_then(Value::as_array_mut);
    rules.into_iter().flatten().for_each(route_rule);
}

/// Of an HTTPRoute or a GRPCRoute: header fields that it wants or adds, which may be credentials.
fn route_rule(rule: &mut Value) {
    for matched in rule.get_mut("matches").and_then(Value::as_array_mut).into_iter().flatten() {
        for list in ["headers", "queryParams"] {
            redact_values(matched.get_mut(list));
        }
    }
    route_filters(rule);
    rule.get_mut("backendRefs").and_then(Value::as_array_mut).into_iter().flatten().for_each(route_filters);
}

/// Of a rule, or of one of its backends.
fn route_filters(of: &mut Value) {
    for filter in of.get_mut("filters").and_then(Value::as_array_mut).into_iter().flatten() {
        for list in ["set", "add"] {
            for modifier in ["requestHeaderModifier", "responseHeaderModifier"] {
                redact_values(filter.pointer_mut(&format!("/{modifier}/{list}")));
            }
        }
    }
}

fn container(container: &mut Value) {
    redact_values(container.get_mut("env"));
    for words in ["command", "args"] {
        redact_list(container.get_mut(words));
    }
    for hook in ["livenessProbe", "readinessProbe", "startupProbe", "lifecycle/postStart", "lifecycle/preStop"] {
        redact_list(container.pointer_mut(&format!("/{hook}/exec/command")));
        redact_values(container.pointer_mut(&format!("/{hook}/httpGet/httpHeaders")));
    }
}

/// Of a list of names with values.
fn redact_values(list: Option<&mut Value>) {
    for entry in list.and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(value) = entry.get_mut("value") {
            *value = Value::from(REDACTED);
        }
    }
}

fn redact_list(list: Option<&mut Value>) {
    if let Some(list) = list {
        *list = Value::from(vec![REDACTED]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_value_survives_wherever_a_container_may_be() {
        let container = serde_json::json!({
            "name": "c", "command": ["run", "--password=hunter2"], "args": ["hunter2"],
            "env": [{"name": "TOKEN", "value": "hunter2"}, {"name": "REF", "valueFrom": {"secretKeyRef": {"name": "s"}}}],
            "readinessProbe": {"httpGet": {"port": 80, "httpHeaders": [{"name": "Authorization", "value": "hunter2"}]}},
            "livenessProbe": {"exec": {"command": ["check", "hunter2"]}},
            "lifecycle": {"preStop": {"exec": {"command": ["hunter2"]}}},
        });
        let spec = serde_json::json!({"containers": [container], "initContainers": [container], "ephemeralContainers": [container]});
        let annotations =
            serde_json::json!({"kubectl.kubernetes.io/last-applied-configuration": "hunter2", "team": "shop"});
        for mut object in [
            serde_json::json!({"kind": "Pod", "metadata": {"annotations": annotations}, "spec": spec}),
            serde_json::json!({"kind": "Deployment", "metadata": {"annotations": annotations}, "spec": {"template": {"spec": spec}}}),
        ] {
            redact(&mut object);
            let text = object.to_string();
            assert!(!text.contains("hunter2"), "{text}");
            assert!(text.contains("TOKEN") && text.contains("secretKeyRef") && text.contains("\"port\":80"), "{text}");
        }
    }

    #[test]
    fn header_fields_of_routes_do_not_leave_the_cluster() {
        let fields = serde_json::json!([{"type": "Exact", "name": "authorization", "value": "hunter2"}]);
        let rule = serde_json::json!({"matches": [{"path": {"value": "/shop"}, "headers": fields, "queryParams": fields}],
            "filters": [{"requestHeaderModifier": {"set": fields, "add": fields}}],
            "backendRefs": [{"name": "web", "filters": [{"responseHeaderModifier": {"set": fields, "add": fields}}]}]});
        let mut route = serde_json::json!({"kind": "HTTPRoute", "metadata": {}, "spec": {"rules": [rule]}});
        redact(&mut route);
        let text = route.to_string();
        assert!(!text.contains("hunter2") && text.contains("authorization") && text.contains("/shop"), "{text}");
    }
}
