//! Attempts that the kernels of the nodes follow.

use netdiag_common::observation::series::path::PathBy;

use super::*;
use crate::kube::Kept;

/// Agents of a cluster whose Secrets were renewed after the servers had read them.
struct Renewed(Agents);

impl Source for Renewed {
    async fn cluster(&self) -> Result<Arc<Cluster>, SourceError> {
        self.0.cluster().await
    }

    async fn gather(&self, needs: Vec<Need>, deadline: Instant) -> Vec<(Need, Reading<Observation>)> {
        self.0.gather(needs, deadline).await
    }

    fn now(&self) -> Timestamp {
        self.0.now()
    }

    fn is_live(&self) -> bool {
        self.0.is_live()
    }

    async fn certificate(&self, _: &str, _: &str) -> Result<Option<Kept>, Gap> {
        Ok(Some(Kept {
            sha256: "cd".to_owned(),
            serial: "02".to_owned(),
            not_after: "2028-01-01T12:00:00Z".to_owned(),
            names: Vec::new(),
        }))
    }
}

#[tokio::test]
async fn a_certificate_is_compared_with_the_secret_also_where_its_connection_is_followed() {
    let agents = Renewed(Agents { cluster: world(), broken: BTreeMap::new(), armed: Mutex::default() });
    let cluster = agents.0.cluster.clone();
    for follow in [false, true] {
        let mut request = ProbeRequest::new(Kind::Tls, "pod/shop/client", "pod/shop/web-1:8080");
        request.follow = follow;
        request.options.secret = Some("shop/web-tls".to_owned());
        let plan = probe::plan(&request, &cluster).expect("a plan");
        let sender = Sender { source: &agents, cluster: cluster.clone(), rights: &Unchecked, asked_by: None };
        let answer = build(&probe::run(&sender, plan).await.expect("results"), agents.now());
        let [series] = answer.series.as_slice() else { panic!("{:?}", answer.series) };
        assert_eq!((answer.status, series.followed.is_some()), (ProbeStatus::Failed, follow), "{}", answer.verdict);
        let compared = series.secret.as_ref().expect("a comparison");
        assert_eq!((compared.secret.as_str(), compared.outcome), ("shop/web-tls", Outcome::Different));
    }
}

#[tokio::test]
async fn what_was_followed_to_its_drop_is_told_with_what_could_not_be_seen() {
    let mut request = ProbeRequest::new(Kind::Tcp, "pod/shop/client", "service/shop/web:80");
    (request.follow, request.count) = (true, Some(3));
    let answer = asked_for(&request, &[(("*", "10.244.1.4:8080"), FailureClass::Silence)]).await;
    assert_eq!(
        (answer.status, answer.series[0].tally.made),
        (ProbeStatus::Failed, 1),
        "it ends with the first that fails"
    );
    let followed = answer.series[0].followed.clone().expect("a way");
    assert_eq!(followed.way, "sent from n1 → dropped on n1 by NETFILTER_DROP at nft_do_chain in prerouting");
    assert!(answer.verdict.ends_with(&followed.way), "{}", answer.verdict);
    let dropped = followed.dropped.clone().expect("a drop");
    assert_eq!((dropped.node.as_str(), dropped.place.as_str()), ("n1", "node"));
    assert_eq!(answer.not_seen.len(), 1, "{:?}", answer.not_seen);
    assert_eq!((answer.not_seen[0].node.as_str(), answer.not_seen[0].remedy.as_str()), ("n2", "use a newer one"));
    let text = answer.text(Paint::Plain);
    assert!(text.contains("pod shop/client eth0: sent"), "{text}");
    let value: Value = serde_json::to_value(&answer).expect("JSON");
    jsonschema::validate(&crate::answer::schema::of::<ProbeAnswer>(PROBE_SCHEMA), &value).expect("as the schema says");
}

#[tokio::test]
async fn a_name_is_looked_up_before_its_connection_is_followed() {
    let mut request = ProbeRequest::new(Kind::Http, "pod/shop/client", "http://lb.cloud.example./");
    request.follow = true;
    let answer = asked_for(&request, &[(("*", "203.0.113.9:80"), FailureClass::Silence)]).await;
    let to: Vec<&str> = answer.series.iter().map(|series| series.to.as_str()).collect();
    assert_eq!(to, [outside::BALANCER, "http://lb.cloud.example./ at 203.0.113.9:80"]);
    let followed = answer.series[1].followed.clone().expect("a way");
    assert!(followed.way.contains("dropped on n1 by NETFILTER_DROP"), "{}", followed.way);
    assert!(answer.series[0].followed.is_none() && answer.series[0].status == ProbeStatus::Well);
}

#[tokio::test]
async fn more_attempts_than_are_followed_are_sent_all_the_same_and_told() {
    let mut request = ProbeRequest::new(Kind::Tcp, "pod/shop/client", "pod/shop/web-1:8080");
    (request.follow, request.count) = (true, Some(7));
    let answer = asked_for(&request, &[]).await;
    let tally = &answer.series[0].tally;
    assert_eq!((tally.asked, tally.succeeded), (7, 7));
    assert!(tally.unseen[0].starts_with("the ways of 2 attempts, of which 0 failed"), "{:?}", tally.unseen);
    let answer = asked_for(&request, &[(("*", "10.244.1.4:8080"), FailureClass::Silence)]).await;
    let tally = &answer.series[0].tally;
    assert_eq!((tally.made, tally.unseen.len()), (1, 0), "the first one that fails is what is looked for");
}

#[tokio::test]
async fn what_breaks_a_ladder_or_a_matrix_is_followed_when_it_is_sent_once_more() {
    for kind in [Kind::Ladder, Kind::Matrix] {
        let mut request = ProbeRequest::new(kind, "pod/shop/client", "service/shop/web:80");
        request.follow = true;
        let answer = asked_for(&request, &[(("client", "10.244.2.5:8080"), FailureClass::Silence)]).await;
        let series = answer.series.iter().find(|series| series.followed.is_some()).expect("what was followed");
        assert!(series.to.ends_with(" once more, from pod/shop/client"), "{}", series.to);
        let way = &series.followed.as_ref().expect("a way").way;
        assert!(way.contains("dropped on n1 by NETFILTER_DROP") && answer.verdict.ends_with(way.as_str()), "{way}");
        let nothing_fails = asked_for(&request, &[]).await;
        assert!(nothing_fails.status != ProbeStatus::Failed && nothing_fails.series.is_empty(), "{nothing_fails:?}");
    }
}

#[test]
fn what_has_no_tuple_before_it_is_sent_is_refused_with_the_reason() {
    let world = world();
    let planned = |kind: Kind, to: &str, by: Option<PathBy>| {
        let mut request = ProbeRequest::new(kind, "pod/shop/client", to);
        (request.follow, request.options.by) = (true, by);
        probe::plan(&request, &world).map_err(|refused| refused.to_string())
    };
    let refused = |kind: Kind, to: &str, by: Option<PathBy>| planned(kind, to, by).expect_err("no tuple");
    assert_eq!(
        refused(Kind::Path, "pod/shop/web-2", None),
        "path to pod/shop/web-2 cannot be followed: nothing that a kernel program reads tells its echoes apart: use --by \
         udp or --by tcp"
    );
    assert!(refused(Kind::Path, "web.shop", None).contains("--by udp"));
    assert!(refused(Kind::Throughput, "web.shop:80", None).contains("more packets than an agent tells of"));
    assert!(refused(Kind::Dns, "web.shop", None).contains("name one --server"));
    for (kind, to, by) in [
        (Kind::Http, "http://203.0.113.7/", None),
        (Kind::Http, "http://shop.example/", None),
        (Kind::Icmp, "pod/shop/web-2", None),
        (Kind::Mtu, "pod/shop/web-2", None),
        (Kind::Path, "pod/shop/web-2:8080", None),
        (Kind::Path, "web.shop", Some(PathBy::Udp)),
        (Kind::Ladder, "service/shop/web:80", None),
    ] {
        planned(kind, to, by).expect("a plan");
    }
}
