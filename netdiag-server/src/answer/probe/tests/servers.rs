//! Each DNS server apart, with what it is.

use netdiag_common::observation::resolver::Resolver;

use super::rights::ShopAlone;
use super::*;

/// The client asks the cluster's DNS, the replica's pod a server outside, and nobody can look into anything else.
pub(super) fn resolver(need: Need) -> (Need, Reading<Observation>) {
    let of = |servers: &[&str]| {
        let nameservers = servers.iter().map(|server| server.parse().expect("an address")).collect();
        Observation::Resolver(Resolver { nameservers, ..Resolver::default() })
    };
    let value = match &need.netns {
        Netns::Pod(uid) if uid == "client" => of(&["10.96.0.10"]),
        Netns::Pod(uid) if uid == "coredns" => of(&["10.1.0.53", "8.8.8.8"]),
        _ => {
            let gap = Gap {
                what: String::new(),
                node: Some(need.node.clone()),
                reason: GapReason::Gone,
                why: "nothing runs there".to_owned(),
                remedy: "ask for another pod".to_owned(),
            };
            return (need, Reading::Unavailable { gap });
        }
    };
    (need, Reading::Seen { value, at: NOW.parse().expect("a time") })
}

fn with_dns(more: impl IntoIterator<Item = Value>) -> Arc<Cluster> {
    let corefile = ".:53 {\n  kubernetes cluster.local\n  forward . /etc/resolv.conf\n}\ncorp.example {\n  forward . 10.2.0.53:5353 tls://10.2.0.54\n}\n";
    let objects = [
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "kube-dns", "namespace": "kube-system"},
            "spec": {"clusterIP": "10.96.0.10", "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}]}}),
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "coredns", "namespace": "kube-system", "uid": "coredns"},
            "spec": {"nodeName": "n2"}, "status": {"phase": "Running", "podIP": "10.244.2.9"}}),
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "kube-dns-1", "namespace": "kube-system", "labels": {"kubernetes.io/service-name": "kube-dns"}},
            "endpoints": [{"addresses": ["10.244.2.9"], "conditions": {"ready": true}, "nodeName": "n2",
                "targetRef": {"kind": "Pod", "namespace": "kube-system", "name": "coredns"}}],
            "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}]}),
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "coredns", "namespace": "kube-system"},
            "data": {"Corefile": corefile}}),
    ];
    let mut cluster = Cluster::clone(&world());
    for object in objects.into_iter().chain(more) {
        parse::add(&mut cluster, object).expect("an object");
    }
    Arc::new(cluster)
}

async fn each(cluster: Arc<Cluster>, from: &str, name: &str) -> ProbeAnswer {
    let mut request = ProbeRequest::new(Kind::Dns, from, name);
    request.options.server = Some("each".to_owned());
    asked_in(cluster, &request, &[]).await
}

fn asked_servers(answer: &ProbeAnswer) -> Vec<&str> {
    answer.series.iter().map(|series| series.to.as_str()).collect()
}

#[tokio::test]
async fn a_name_of_the_cluster_is_asked_of_no_upstream() {
    let name = "web.shop.svc.cluster.local";
    let answer = each(with_dns([]), "pod/shop/client", name).await;
    assert_eq!(
        asked_servers(&answer),
        [
            name.to_owned(),
            format!("{name} by 10.96.0.10:53 (resolv.conf of pod/shop/client; Service kube-system/kube-dns)"),
            format!("{name} by 10.244.2.9:53 (replica pod/kube-system/coredns on n2)"),
        ]
    );
    assert_eq!(answer.status, ProbeStatus::Well, "{}", answer.verdict);
    let left_out = &answer.series[0].tally.unseen;
    assert_eq!(left_out.as_slice(), ["upstreams of CoreDNS: not asked: it answers names of cluster.local itself"]);
}

#[tokio::test]
async fn upstreams_are_those_that_the_corefile_leads_the_name_to() {
    let answer = each(with_dns([]), "pod/shop/client", "example.com").await;
    let by_file = "upstream of CoreDNS, by /etc/resolv.conf of pod/kube-system/coredns";
    let there = "asked from pod/kube-system/coredns on n2";
    assert_eq!(
        asked_servers(&answer)[3..],
        [
            format!("example.com by 10.1.0.53:53 ({by_file}), {there}"),
            format!("example.com by 8.8.8.8:53 ({by_file}), {there}")
        ]
    );
    let answer = each(with_dns([]), "pod/shop/client", "git.corp.example").await;
    assert_eq!(
        asked_servers(&answer)[3..],
        [
            format!("git.corp.example by 10.2.0.53:5353 (upstream of CoreDNS), {there}"),
            format!("git.corp.example by 10.2.0.54:853 (upstream of CoreDNS), {there}")
        ]
    );
}

#[tokio::test]
async fn an_upstream_is_asked_from_the_replicas_own_namespace() {
    let mut request = ProbeRequest::new(Kind::Dns, "pod/shop/client", "example.com");
    request.options.server = Some("each".to_owned());
    let broken = |place| ((place, "8.8.8.8:53"), FailureClass::Silence);
    let answer = asked_in(with_dns([]), &request, &[broken("coredns")]).await;
    let failed: Vec<&str> =
        answer.series.iter().filter(|series| series.tally.failed > 0).map(|series| series.to.as_str()).collect();
    assert_eq!(failed, [asked_servers(&answer)[4]]);
    let answer = asked_in(with_dns([]), &request, &[broken("client")]).await;
    assert_eq!(answer.status, ProbeStatus::Well, "{}", answer.verdict);
}

#[tokio::test]
async fn an_upstream_is_asked_from_the_client_where_nobody_may_ask_from_the_replica() {
    let mut request = ProbeRequest::new(Kind::Dns, "pod/shop/client", "git.corp.example");
    request.options.server = Some("each".to_owned());
    let agents = Agents { cluster: with_dns([]), broken: BTreeMap::new(), armed: Mutex::default() };
    let plan = probe::plan(&request, &agents.cluster).expect("a plan");
    let sender = Sender { source: &agents, cluster: agents.cluster.clone(), rights: &ShopAlone, asked_by: None };
    let answer = build(&probe::run(&sender, plan).await.expect("results"), agents.now());
    assert_eq!(
        asked_servers(&answer)[3..],
        [
            "git.corp.example by 10.2.0.53:5353 (upstream of CoreDNS)",
            "git.corp.example by 10.2.0.54:853 (upstream of CoreDNS)"
        ]
    );
    let why = "upstreams of CoreDNS: asked from pod/shop/client, and not from its own pods: \
               ann may not probe from kube-system";
    assert_eq!(answer.series[0].tally.unseen, [why]);
}

#[tokio::test]
async fn the_cache_on_the_node_is_asked_where_it_runs() {
    let set = json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "node-local-dns", "namespace": "kube-system"}});
    let answer = each(with_dns([set]), "pod/shop/client", "web.shop.svc.cluster.local").await;
    let cache = "by 169.254.20.10:53 (NodeLocal DNSCache, DaemonSet kube-system/node-local-dns, its usual address)";
    assert!(asked_servers(&answer).iter().any(|to| to.ends_with(cache)), "{:?}", asked_servers(&answer));
}

#[tokio::test]
async fn the_cache_is_asked_where_its_daemon_set_lets_it_listen() {
    let name = "web.shop.svc.cluster.local";
    let set = |args: Value| {
        json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "node-local-dns", "namespace": "kube-system"},
            "spec": {"template": {"spec": {"containers": [{"name": "node-cache", "args": args}]}}}})
    };
    let cache = "NodeLocal DNSCache, DaemonSet kube-system/node-local-dns";
    for args in [
        json!(["-localip", "169.254.20.11,10.96.0.10", "-conf", "/etc/Corefile"]),
        json!(["-conf", "/etc/Corefile", "--localip=169.254.20.11, 10.96.0.10"]),
    ] {
        let answer = each(with_dns([set(args)]), "pod/shop/client", name).await;
        let own = "resolv.conf of pod/shop/client";
        assert_eq!(
            asked_servers(&answer)[1..3],
            [
                format!("{name} by 10.96.0.10:53 ({own}; {cache}; Service kube-system/kube-dns)"),
                format!("{name} by 169.254.20.11:53 ({cache})"),
            ]
        );
    }
    let unfilled = set(json!(["-localip", "__PILLAR__LOCAL__DNS__,__PILLAR__DNS__SERVER__"]));
    let answer = each(with_dns([unfilled]), "pod/shop/client", name).await;
    let usual = format!("{name} by 169.254.20.10:53 ({cache}, its usual address)");
    assert!(asked_servers(&answer).contains(&usual.as_str()), "{:?}", asked_servers(&answer));
}

#[tokio::test]
async fn a_resolv_conf_that_cannot_be_read_is_a_gap() {
    let answer = each(with_dns([]), "pod/shop/client-2", "web.shop.svc.cluster.local").await;
    assert_eq!((answer.status, answer.series.len(), answer.not_seen.len()), (ProbeStatus::Unknown, 3, 1), "{answer:?}");
    assert!(answer.not_seen[0].what.starts_with("resolv.conf of"), "{:?}", answer.not_seen);
}
