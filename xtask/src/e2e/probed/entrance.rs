//! Where requests from outside come in: the rungs of an Ingress and of a Gateway, in both families. No controller runs: the Service
//! itself stands where one would, so that what is sent and judged is tried, and no controller.

use anyhow::Result;
use serde_json::{Value, json};

use super::super::world::CLIENT;
use super::{READY_WITHIN, probe};
use crate::cluster::Cluster;
use crate::install::Installed;
use crate::template;

const INGRESS: &str = "
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: fake-controller, namespace: shop}
spec:
  rules:
  - host: shop.example
    http: {paths: [{path: /hostname, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}
";

/// A definition that takes whatever is written: the ones of Gateway API check what is not tried here.
const DEFINITION: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: {{plural}}.gateway.networking.k8s.io
  # Without it the API server refuses definitions in groups of k8s.io.
  annotations: {api-approved.kubernetes.io: 'unapproved, for a test'}
spec:
  group: gateway.networking.k8s.io
  names:
    kind: {{kind}}
    plural: {{plural}}
    singular: {{singular}}
  scope: Namespaced
  versions:
  - name: {{version}}
    served: true
    storage: true
    subresources: {status: {}}
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
";

/// Some in the version alone that they had before Gateway API 1.5.
const KINDS: [(&str, &str, &str); 5] = [
    ("Gateway", "gateways", "v1"),
    ("HTTPRoute", "httproutes", "v1"),
    ("GRPCRoute", "grpcroutes", "v1"),
    ("TLSRoute", "tlsroutes", "v1alpha2"),
    ("ReferenceGrant", "referencegrants", "v1beta1"),
];

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

/// gRPC's health service, plain and by TLS, with a certificate that has another name.
const HEALTH: &str = "
apiVersion: v1
kind: Pod
metadata: {name: health, namespace: shop, labels: {app: health}}
spec:
  nodeName: n2
  terminationGracePeriodSeconds: 0
  containers:
  - name: plain
    image: netdiag/tools:1
    imagePullPolicy: Never
    command: [/agnhost, grpc-health-checking, --port=5000, --http-port=8080]
  - name: tls
    image: netdiag/tools:1
    imagePullPolicy: Never
    command: [/agnhost, grpc-health-checking, --port=5001, --http-port=8081, --tls-cert-file=/tls/tls.crt, --tls-private-key-file=/tls/tls.key]
    volumeMounts: [{name: tls, mountPath: /tls}]
  volumes: [{name: tls, secret: {secretName: health-tls}}]
---
apiVersion: v1
kind: Service
metadata: {name: health, namespace: shop}
spec:
  ipFamilyPolicy: PreferDualStack
  selector: {app: health}
  ports: [{name: plain, port: 5000}, {name: tls, port: 5001}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: fake-health, namespace: shop}
spec:
  gatewayClassName: fake
  listeners:
  - {name: plain, port: 5000, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}}
  - {name: tls, port: 5001, protocol: TLS, tls: {mode: Passthrough}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: fake-health, namespace: pay}
spec:
  parentRefs: [{name: fake-health, namespace: shop}]
  hostnames: [health.example]
  rules: [{backendRefs: [{name: health, namespace: shop, port: 5000}]}]
---
apiVersion: gateway.networking.k8s.io/v1alpha2
kind: TLSRoute
metadata: {name: fake-health, namespace: shop}
spec:
  parentRefs: [{name: fake-health}]
  hostnames: [health.example]
  rules: [{backendRefs: [{name: health, port: 5001}]}]
";

const GRANT: &str = "
apiVersion: gateway.networking.k8s.io/v1beta1
kind: ReferenceGrant
metadata: {name: fake-health, namespace: shop}
spec:
  from: [{group: gateway.networking.k8s.io, kind: GRPCRoute, namespace: pay}]
  to: [{group: '', kind: Service}]
";

const WEB: &str = "service/shop/web:80";
const BY_GRPC: &str = "service/shop/health:5000";
const BY_TLS: &str = "service/shop/health:5001";
const NO_GRANT: &str = "no ReferenceGrant in shop allows GRPCRoute of pay to refer to Service health";

/// The host is the last rung that holds. The cluster has no Gateway API, which is no gap.
pub(super) fn fake_ingress(cluster: &Cluster, installed: &Installed) -> Result<Option<String>> {
    cluster.apply(INGRESS)?;
    let addresses: Vec<Value> = addresses(cluster, "web")?.into_iter().map(|ip| json!({"ip": ip})).collect();
    take_over(cluster, "ingress/fake-controller", &json!({"loadBalancer": {"ingress": addresses}}))?;
    let wrong = does_not_hold(cluster, installed, "ingress", WEB)?;
    cluster.kubectl(&["-n", "shop", "delete", "ingress", "fake-controller"])?;
    Ok(wrong)
}

/// The same by Gateways, whose API comes while the server runs: by HTTP, by gRPC and by TLS that is passed on.
pub(super) fn fake_gateway(cluster: &Cluster, installed: &Installed) -> Result<Vec<String>> {
    let definition = |(kind, plural, version): (&str, &str, &str)| {
        let singular = kind.to_lowercase();
        let values = [("kind", kind), ("plural", plural), ("version", version), ("singular", singular.as_str())];
        template::fill(DEFINITION, &values)
    };
    cluster.apply(&KINDS.into_iter().map(definition).collect::<Result<Vec<_>>>()?.join("---"))?;
    cluster.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=30s"])?;
    cluster.apply(GATEWAY)?;
    takes_gateway(cluster, "fake-controller", "web")?;
    let mut wrong = Vec::new();
    wrong.extend(does_not_hold(cluster, installed, "gateway", WEB)?);
    certificate(cluster)?;
    cluster.apply(HEALTH)?;
    cluster.kubectl(&["-n", "shop", "wait", "--for=condition=Ready", "pod/health", "--timeout=90s"])?;
    takes_gateway(cluster, "fake-health", "health")?;
    wrong.extend(does_not_hold(cluster, installed, "gateway", BY_TLS)?);
    wrong.extend(does_not_hold(cluster, installed, "gateway", BY_GRPC)?);
    wrong.extend(is_granted(cluster, installed)?);
    cluster.kubectl(&["delete", "crd", "--all"])?;
    cluster.kubectl(&["-n", "shop", "delete", "pod/health", "service/health", "secret/health-tls"])?;
    Ok(wrong)
}

/// The rung says which grant is missing, until it is there.
fn is_granted(cluster: &Cluster, installed: &Installed) -> Result<Option<String>> {
    let before = probe(cluster, installed, &["ladder"], CLIENT, BY_GRPC)?;
    let is_told = before.to_string().contains(NO_GRANT);
    cluster.apply(GRANT)?;
    cluster.wait_until("ladder without a missing grant", READY_WITHIN, || {
        let answer = probe(cluster, installed, &["ladder"], CLIENT, BY_GRPC).unwrap_or_default();
        answer["status"] == "well" && !answer.to_string().contains(NO_GRANT)
    })?;
    Ok((!is_told).then(|| format!("a grant is missing, and the ladder does not say so: {before}")))
}

/// One of the cluster's own, which nobody trusts who was not told of its authority.
fn certificate(cluster: &Cluster) -> Result<()> {
    let folder = cluster.scratch("pki")?;
    let file = |option: &str, end: &str| format!("--{option}={}", folder.join(format!("apiserver.{end}")).display());
    let (certificate, key) = (file("cert", "crt"), file("key", "key"));
    cluster.kubectl(&["-n", "shop", "create", "secret", "tls", "health-tls", &certificate, &key])?;
    Ok(())
}

/// The Service's own.
fn addresses(cluster: &Cluster, service: &str) -> Result<Vec<Value>> {
    let service: Value =
        serde_json::from_str(&cluster.kubectl(&["-n", "shop", "get", "service", service, "-o", "json"])?)?;
    Ok(service["spec"]["clusterIPs"].as_array().cloned().unwrap_or_default())
}

/// The Service stands where the Gateway's controller would listen.
fn takes_gateway(cluster: &Cluster, gateway: &str, service: &str) -> Result<()> {
    let of = |value: Value| json!({"type": "IPAddress", "value": value});
    let addresses: Vec<Value> = addresses(cluster, service)?.into_iter().map(of).collect();
    take_over(cluster, &format!("gateway/{gateway}"), &json!({"addresses": addresses}))
}

/// Says what a controller would.
fn take_over(cluster: &Cluster, object: &str, status: &Value) -> Result<()> {
    let status = json!({"status": status}).to_string();
    let patch = ["patch", object, "--subresource=status", "--type=merge", "--patch", &status];
    cluster.kubectl(&[&["-n", "shop"], &patch[..]].concat())?;
    Ok(())
}

fn does_not_hold(cluster: &Cluster, installed: &Installed, name: &str, to: &str) -> Result<Option<String>> {
    let mut answer = Value::Null;
    let rungs = |answer: &Value| {
        let ladders = answer["ladders"].as_array().cloned().unwrap_or_default();
        let all = ladders.iter().flat_map(|ladder| ladder["rungs"].as_array().cloned().unwrap_or_default());
        all.filter(|rung| rung["rung"] == name && rung["attempts"].as_array().is_some_and(|all| !all.is_empty()))
            .count()
    };
    // The server watches: what was just written is there a moment later.
    cluster.wait_until(&format!("rungs of the {name} to {to}"), READY_WITHIN, || {
        answer = probe(cluster, installed, &["ladder"], CLIENT, to).unwrap_or_default();
        rungs(&answer) == 2
    })?;
    let is_right = answer["status"] == "well" && answer["not_seen"] == Value::Array(Vec::new());
    Ok((!is_right).then(|| format!("the ladder by the {name} to {to}: {answer}")))
}
