use super::*;

#[test]
fn link_local_targets_are_refused_with_the_way_out() {
    for text in [
        "fe80::1",
        "[fe80::1]:80",
        "[fe80::1%2]:80",
        "fe80::1%eth0",
        "[fe80::1%eth0]:80",
        "fd00::1%eth0",
        "ip/[fe80::1]:80",
    ] {
        let refused = text.parse::<Goal>().expect_err("a link-local address");
        assert_eq!(refused, PlanError::Target { to: text.to_owned(), wanted: NO_ZONE });
    }
    let of = |text: &str| text.parse::<Goal>();
    assert_eq!(of("[fd00::1]:80"), Ok(Goal::Address("fd00::1".parse().expect("an address"), Some(80))));
    assert_eq!(of("169.254.20.10"), Ok(Goal::Address("169.254.20.10".parse().expect("an address"), None)));
    assert_eq!(of("http://[fd00::1]/a%20b"), Ok(Goal::Url("http://[fd00::1]/a%20b".to_owned())));
}
