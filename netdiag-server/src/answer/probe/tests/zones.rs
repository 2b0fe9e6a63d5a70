//! The columns of a matrix by zone.

use super::*;
use crate::probe::matrix::{Column, ZONE_COLUMNS};

/// Zone a: n1 and n3, zone b: n2; n4 has none. Each has an endpoint.
fn zoned() -> Arc<Cluster> {
    let mut cluster = Cluster::clone(&world());
    let node = |name: &str, address: &str, labels: Value| {
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels},
            "status": {"addresses": [{"type": "InternalIP", "address": address}]}})
    };
    let zone = |zone: &str| json!({"topology.kubernetes.io/zone": zone});
    let pod = |name: &str, node: &str, address: &str| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop", "uid": name, "labels": {"app": "web"}},
            "spec": {"nodeName": node},
            "status": {"phase": "Running", "podIP": address, "conditions": [{"type": "Ready", "status": "True"}]}})
    };
    let endpoint = |name: &str, node: &str, address: &str| {
        json!({"addresses": [address], "conditions": {"ready": true}, "nodeName": node,
            "targetRef": {"kind": "Pod", "namespace": "shop", "name": name}})
    };
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "web-2", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
        "endpoints": [endpoint("web-3", "n3", "10.244.3.6"), endpoint("web-4", "n4", "10.244.4.7")],
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]});
    for object in [
        node("n1", "172.30.0.11", zone("a")),
        node("n2", "172.30.0.12", zone("b")),
        node("n3", "172.30.0.13", zone("a")),
        node("n4", "172.30.0.14", json!({})),
        pod("web-3", "n3", "10.244.3.6"),
        pod("web-4", "n4", "10.244.4.7"),
        slice,
    ] {
        parse::add(&mut cluster, object).expect("an object");
    }
    Arc::new(cluster)
}

#[tokio::test]
async fn what_fails_between_zones_alone_is_told_from_what_fails_between_nodes() {
    let request =
        ProbeRequest { count: Some(6), ..ProbeRequest::new(Kind::Matrix, "pod/shop/client", "service/shop/web:80") };
    let between = [
        ("client", "10.244.2.5:8080"),
        ("client-2", "10.244.1.4:8080"),
        ("client-2", "10.244.3.6:8080"),
        ("n1", "172.30.0.12:0"),
        ("n2", "172.30.0.11:0"),
        ("n2", "172.30.0.13:0"),
    ];
    let broken: Vec<_> = between.into_iter().map(|key| (key, FailureClass::Silence)).collect();
    let answer = asked_in(zoned(), &request, &broken).await;
    let matrix = answer.matrix.as_ref().expect("a matrix");
    assert_eq!(matrix.zones, ["a", "b"]);
    assert_eq!(matrix.without_zone, ["pod/shop/web-4: node n4 has no label topology.kubernetes.io/zone"]);
    let signature = matrix.rows.iter().find(|row| row.from == "signature").expect("a signature");
    let mark = |column: Column| {
        signature.cells.iter().find(|cell| cell.column == column).map(|cell| cell.mark.as_str()).expect("a cell")
    };
    assert_eq!((mark(Column::PodSameZone), mark(Column::PodOtherZone)), ("✓", "✗t"));
    assert_eq!((mark(Column::NodeSameZone), mark(Column::NodeOtherZone)), ("✓", "✗t"));
    assert_eq!(mark(Column::VipOtherZone), "✗t");
    let text = answer.text(Paint::Plain);
    assert!(text.contains("\nother nodes by zone (a, b), IPv4\n"), "{text}");
    assert!(text.contains("\nno zone     pod/shop/web-4: node n4 has no label"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 122), "{text}");
    let value: Value = serde_json::to_value(&answer).expect("JSON");
    jsonschema::validate(&crate::answer::schema::of::<ProbeAnswer>(PROBE_SCHEMA), &value).expect("as the schema says");
}

#[tokio::test]
async fn a_cluster_of_one_zone_has_no_columns_by_zone() {
    let answer = asked(Kind::Matrix, 6, &[]).await;
    let matrix = answer.matrix.expect("a matrix");
    assert!(matrix.zones.is_empty() && matrix.without_zone.is_empty(), "{matrix:?}");
    let mut cells = matrix.rows.iter().flat_map(|row| &row.cells);
    assert!(cells.all(|cell| !ZONE_COLUMNS.contains(&cell.column)));
}
