//! Objects as `kubectl get -o yaml` writes them, into the snapshot: what bundles and fixtures are made of.

use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::cluster::Cluster;
use super::object::{Object, Workload};

/// An object that cannot be understood. Names the object; the caller adds file and line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{object}: {why}")]
pub struct ObjectError {
    pub object: String,
    pub why: String,
}

/// Adds one object, or each item of a `List`, to the snapshot. Kinds that are never judged are skipped.
pub fn add(cluster: &mut Cluster, value: Value) -> Result<(), ObjectError> {
    let kind = value.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
    if let (true, Value::Object(mut list)) = (kind.ends_with("List"), value.clone()) {
        let item_kind = kind.trim_end_matches("List").to_owned();
        let Some(Value::Array(items)) = list.remove("items") else { return Ok(()) };
        for mut item in items {
            // Items of a typed list carry no kind of their own.
            if let (Some(object), false) = (item.as_object_mut(), item_kind.is_empty()) {
                object.entry("kind").or_insert_with(|| Value::String(item_kind.clone()));
            }
            add(cluster, item)?;
        }
        return Ok(());
    }
    match kind.as_str() {
        "Namespace" => insert(&mut cluster.namespaces, value),
        "Node" => insert(&mut cluster.nodes, value),
        "Pod" => insert(&mut cluster.pods, value),
        "Service" => insert(&mut cluster.services, value),
        "EndpointSlice" => insert(&mut cluster.endpoint_slices, value),
        "NetworkPolicy" => insert(&mut cluster.network_policies, value),
        "Event" => insert(&mut cluster.events, value),
        "ConfigMap" => insert(&mut cluster.config_maps, value),
        "Deployment" | "ReplicaSet" | "DaemonSet" | "StatefulSet" => {
            let workload: Workload = decode(value)?;
            let key = format!("{kind}/{}", workload.metadata.name);
            cluster.workloads.insert(&workload.metadata.namespace.clone(), &key, Arc::new(workload));
            Ok(())
        }
        "" => Err(ObjectError { object: "an object".to_owned(), why: "it has no kind".to_owned() }),
        _ => Ok(()),
    }
}

fn insert<T: Object + DeserializeOwned>(kind: &mut super::Kind<T>, value: Value) -> Result<(), ObjectError> {
    let object: T = decode(value)?;
    let (namespace, name) = (object.meta().namespace.clone(), object.meta().name.clone());
    kind.insert(&namespace, &name, Arc::new(object));
    Ok(())
}

fn decode<T: DeserializeOwned>(value: Value) -> Result<T, ObjectError> {
    let named = |value: &Value| {
        let text = |pointer| value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        format!("{} {}/{}", text("/kind"), text("/metadata/namespace"), text("/metadata/name"))
    };
    let object = named(&value);
    serde_json::from_value(value).map_err(|error| ObjectError { object, why: error.to_string() })
}
