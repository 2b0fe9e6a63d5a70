//! Attempts that the kernels of the nodes follow.

use super::*;

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

#[test]
fn what_goes_nobody_knows_where_cannot_be_followed() {
    let world = world();
    let mut request = ProbeRequest::new(Kind::Http, "pod/shop/client", "http://shop.example/");
    request.follow = true;
    let refused = probe::plan(&request, &world).expect_err("the pod looks the name up");
    assert!(refused.to_string().starts_with("http to http://shop.example/ cannot be followed"), "{refused}");
    request.to = "http://203.0.113.7/".to_owned();
    probe::plan(&request, &world).expect("an address");
    (request.kind, request.to) = (Kind::Icmp, "pod/shop/web-2".to_owned());
    probe::plan(&request, &world).expect("an echo has an identifier");
    (request.kind, request.to, request.count) = (Kind::Tcp, "pod/shop/web-2:8080".to_owned(), Some(6));
    let refused = probe::plan(&request, &world).expect_err("too many");
    assert!(refused.to_string().contains("followed is 6: use 1 to 5"), "{refused}");
}
