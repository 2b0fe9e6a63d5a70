//! Where requests from outside come in: the rungs of an Ingress and of a Gateway, in both families. No controller runs: the Service
//! itself stands where one would, so that what is sent and judged is tried, and no controller.

use anyhow::Result;
use serde_json::{Value, json};

use super::super::world::CLIENT;
use super::{READY_WITHIN, probe};
use crate::cluster::Cluster;
use crate::install::Installed;

const INGRESS: &str = "
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: fake-controller, namespace: shop}
spec:
  rules:
  - host: shop.example
    http: {paths: [{path: /hostname, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}
";

/// Definitions that take whatever is written: the ones of Gateway API check what is not tried here.
const DEFINITIONS: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: gateways.gateway.networking.k8s.io
  # Without it the API server refuses definitions in groups of k8s.io.
  annotations: {api-approved.kubernetes.io: 'unapproved, for a test'}
spec:
  group: gateway.networking.k8s.io
  names: {kind: Gateway, plural: gateways, singular: gateway}
  scope: Namespaced
  versions:
  - {name: v1, served: true, storage: true, subresources: {status: {}}, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: httproutes.gateway.networking.k8s.io
  annotations: {api-approved.kubernetes.io: 'unapproved, for a test'}
spec:
  group: gateway.networking.k8s.io
  names: {kind: HTTPRoute, plural: httproutes, singular: httproute}
  scope: Namespaced
  versions:
  - {name: v1, served: true, storage: true, subresources: {status: {}}, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}
";

const GATEWAY: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: fake-controller, namespace: shop}
spec:
  gatewayClassName: fake
  listeners: [{name: plain, port: 80, protocol: HTTP, hostname: '*.example'}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: fake-controller, namespace: shop}
spec:
  parentRefs: [{name: fake-controller}]
  hostnames: [shop.example]
  rules:
  - matches: [{path: {type: PathPrefix, value: /hostname}, headers: [{name: X-Group, value: b}]}]
    backendRefs: [{name: web, port: 80}]
";

/// The host is the last rung that holds. The cluster has no Gateway API, which is no gap.
pub(super) fn fake_ingress(cluster: &Cluster, installed: &Installed) -> Result<Option<String>> {
    cluster.apply(INGRESS)?;
    let addresses: Vec<Value> = addresses(cluster)?.into_iter().map(|ip| json!({"ip": ip})).collect();
    take_over(cluster, "ingress", &json!({"loadBalancer": {"ingress": addresses}}))?;
    let wrong = does_not_hold(cluster, installed, "ingress")?;
    cluster.kubectl(&["-n", "shop", "delete", "ingress", "fake-controller"])?;
    Ok(wrong)
}

/// The same by a Gateway, whose API comes while the server runs.
pub(super) fn fake_gateway(cluster: &Cluster, installed: &Installed) -> Result<Option<String>> {
    cluster.apply(DEFINITIONS)?;
    cluster.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=30s"])?;
    cluster.apply(GATEWAY)?;
    let of = |value: Value| json!({"type": "IPAddress", "value": value});
    let addresses: Vec<Value> = addresses(cluster)?.into_iter().map(of).collect();
    take_over(cluster, "gateway", &json!({"addresses": addresses}))?;
    let wrong = does_not_hold(cluster, installed, "gateway")?;
    cluster.kubectl(&["delete", "crd", "--all"])?;
    Ok(wrong)
}

/// The Service's own.
fn addresses(cluster: &Cluster) -> Result<Vec<Value>> {
    let service: Value =
        serde_json::from_str(&cluster.kubectl(&["-n", "shop", "get", "service", "web", "-o", "json"])?)?;
    Ok(service["spec"]["clusterIPs"].as_array().cloned().unwrap_or_default())
}

/// Says what a controller would.
fn take_over(cluster: &Cluster, kind: &str, status: &Value) -> Result<()> {
    let status = json!({"status": status}).to_string();
    let patch = ["patch", kind, "fake-controller", "--subresource=status", "--type=merge", "--patch", &status];
    cluster.kubectl(&[&["-n", "shop"], &patch[..]].concat())?;
    Ok(())
}

fn does_not_hold(cluster: &Cluster, installed: &Installed, name: &str) -> Result<Option<String>> {
    let mut answer = Value::Null;
    let rungs = |answer: &Value| {
        let ladders = answer["ladders"].as_array().cloned().unwrap_or_default();
        let all = ladders.iter().flat_map(|ladder| ladder["rungs"].as_array().cloned().unwrap_or_default());
        all.filter(|rung| rung["rung"] == name && rung["attempts"].as_array().is_some_and(|all| !all.is_empty()))
            .count()
    };
    // The server watches: what was just written is there a moment later.
    cluster.wait_until(&format!("rungs of the {name}"), READY_WITHIN, || {
        answer = probe(cluster, installed, &["ladder"], CLIENT, "service/shop/web:80").unwrap_or_default();
        rungs(&answer) == 2
    })?;
    let is_right = answer["status"] == "well" && answer["not_seen"] == Value::Array(Vec::new());
    Ok((!is_right).then(|| format!("the ladder to the {name}: {answer}")))
}
