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

/// The object itself, or the items of a `List`, each with its kind.
pub fn items(value: Value) -> Vec<Value> {
    let Value::Object(mut list) = value else { return vec![value] };
    let kind = list.get("kind").and_then(Value::as_str).unwrap_or_default();
    let Some(item_kind) = kind.strip_suffix("List").map(str::to_owned) else { return vec![Value::Object(list)] };
    let Some(Value::Array(mut items)) = list.remove("items") else { return Vec::new() };
    // Items of a typed list carry no kind of their own.
    for object in items.iter_mut().filter_map(Value::as_object_mut).filter(|_| !item_kind.is_empty()) {
        object.entry("kind").or_insert_with(|| Value::String(item_kind.clone()));
    }
    items
}

/// Adds one object, or each item of a `List`, to the snapshot. Kinds that are never judged are skipped.
pub fn add(cluster: &mut Cluster, value: Value) -> Result<(), ObjectError> {
    items(value).into_iter().try_for_each(|object| add_object(cluster, object))
}

/// Adds one object of a known kind straight from its JSON, without a tree in between: what lists of the API are made of.
pub fn add_json(cluster: &mut Cluster, kind: &str, json: &str) -> Result<(), ObjectError> {
    let result = match kind {
        "Namespace" => insert_json(&mut cluster.namespaces, json),
        "Node" => insert_json(&mut cluster.nodes, json),
        "Pod" => insert_json(&mut cluster.pods, json),
        "Service" => insert_json(&mut cluster.services, json),
        "EndpointSlice" => insert_json(&mut cluster.endpoint_slices, json),
        "NetworkPolicy" => insert_json(&mut cluster.network_policies, json),
        "Event" => insert_json(&mut cluster.events, json),
        "ConfigMap" => insert_json(&mut cluster.config_maps, json),
        "Ingress" => insert_json(&mut cluster.ingresses, json),
        "HTTPRoute" => insert_json(&mut cluster.http_routes, json),
        "GRPCRoute" => insert_json(&mut cluster.grpc_routes, json),
        "TLSRoute" => insert_json(&mut cluster.tls_routes, json),
        "Gateway" => insert_json(&mut cluster.gateways, json),
        "ReferenceGrant" => insert_json(&mut cluster.reference_grants, json),
        "ServiceCIDR" => insert_json(&mut cluster.service_cidrs, json),
        "Deployment" | "ReplicaSet" | "DaemonSet" | "StatefulSet" => {
            serde_json::from_str::<Workload>(json).map(|mut workload| {
                kind.clone_into(&mut workload.kind);
                insert_workload(cluster, workload);
            })
        }
        _ => Ok(()),
    };
    result.map_err(|error| {
        let value = serde_json::from_str(json).unwrap_or(Value::Null);
        ObjectError { object: named(kind, &value), why: error.to_string() }
    })
}

fn insert_json<T: Object + DeserializeOwned>(kind: &mut super::Kind<T>, json: &str) -> serde_json::Result<()> {
    let object: T = serde_json::from_str(json)?;
    let (namespace, name) = (object.meta().namespace.clone(), object.meta().name.clone());
    kind.insert(&namespace, &name, Arc::new(object));
    Ok(())
}

fn insert_workload(cluster: &mut Cluster, workload: Workload) {
    let key = format!("{}/{}", workload.kind, workload.metadata.name);
    cluster.workloads.insert(&workload.metadata.namespace.clone(), &key, Arc::new(workload.slim()));
}

/// Adds one object that is no list.
pub fn add_object(cluster: &mut Cluster, value: Value) -> Result<(), ObjectError> {
    let kind = value.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
    match kind.as_str() {
        "Namespace" => insert(&mut cluster.namespaces, value),
        "Node" => insert(&mut cluster.nodes, value),
        "Pod" => insert(&mut cluster.pods, value),
        "Service" => insert(&mut cluster.services, value),
        "EndpointSlice" => insert(&mut cluster.endpoint_slices, value),
        "NetworkPolicy" => insert(&mut cluster.network_policies, value),
        "Event" => insert(&mut cluster.events, value),
        "ConfigMap" => insert(&mut cluster.config_maps, value),
        "Ingress" => insert(&mut cluster.ingresses, value),
        "HTTPRoute" => insert(&mut cluster.http_routes, value),
        "GRPCRoute" => insert(&mut cluster.grpc_routes, value),
        "TLSRoute" => insert(&mut cluster.tls_routes, value),
        "Gateway" => insert(&mut cluster.gateways, value),
        "ReferenceGrant" => insert(&mut cluster.reference_grants, value),
        "ServiceCIDR" => insert(&mut cluster.service_cidrs, value),
        "Deployment" | "ReplicaSet" | "DaemonSet" | "StatefulSet" => {
            insert_workload(cluster, decode(value)?);
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
    let object = named(value.get("kind").and_then(Value::as_str).unwrap_or_default(), &value);
    serde_json::from_value(value).map_err(|error| ObjectError { object, why: error.to_string() })
}

/// `Pod shop/web-1`, `Node n1`.
fn named(kind: &str, value: &Value) -> String {
    let text = |pointer| value.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    match (text("/metadata/namespace"), text("/metadata/name")) {
        ("", name) => format!("{kind} {name}"),
        (namespace, name) => format!("{kind} {namespace}/{name}"),
    }
}
