//! IPsec policies.

use std::process::Command;

use netdiag_common::observation::fate::FateOrigin;

use crate::lab::{self, fate};
use crate::way::{BACKEND, NODE, Way, request, unseen};

/// Whether this kernel has IPsec; said loudly when it has not.
fn has_ipsec(way: &Way) -> bool {
    let output = way.node.run(|| Command::new("ip").args(["xfrm", "policy"]).output().unwrap());
    if !output.status.success() {
        lab::skip(format!("no IPsec: {}", String::from_utf8_lossy(&output.stderr)));
    }
    output.status.success()
}

#[test]
fn the_policy_that_a_packet_meets_is_named() {
    let Some(way) = Way::start("xfrm") else { return };
    if !has_ipsec(&way) {
        return;
    }
    way.node.sh("ip xfrm policy add src 10.1.0.0/24 dst 10.2.0.0/24 dir out priority 100 \
            tmpl src 192.0.2.1 dst 192.0.2.2 proto esp mode tunnel
         ip xfrm policy add src 10.1.0.0/24 dst 10.2.0.0/24 proto tcp dport 8443 dir out priority 50
         ip xfrm policy add src 10.1.0.2/32 dst 10.1.0.1/32 proto tcp dport 22 dir in priority 7 action block
         ip xfrm policy add src 10.1.0.0/24 dst 10.2.0.0/24 mark 0xe00 mask 0xf00 dir fwd priority 1 action block
         ip xfrm policy add src fd01::/64 dst fd02::/64 dir out priority 9 action block");
    let tunnel = unseen(&way.received(BACKEND, 80));
    assert_eq!(tunnel.len(), 1, "{tunnel:?}");
    let expected =
        "XFRM policy out src 10.1.0.0/24 dst 10.2.0.0/24 (esp tunnel 192.0.2.1 → 192.0.2.2; priority 100, index ";
    assert!(tunnel[0].starts_with(expected), "{tunnel:?}");
    // A policy in front of it lets this port pass.
    assert_eq!(unseen(&way.received(BACKEND, 8443)), [""; 0]);
    let blocked = way.received(NODE, 22);
    assert!(
        unseen(&blocked)[0].starts_with("XFRM policy in src 10.1.0.2/32 dst 10.1.0.1/32 (block; priority 7,"),
        "{blocked:?}"
    );
    assert!(blocked.outcome.paths[0].gaps[0].starts_with("XFRM policy in"));
    assert_eq!(unseen(&way.received(NODE, 23)), [""; 0]);
}

#[test]
fn a_translated_packet_meets_policies_by_either_address() {
    let Some(way) = Way::start("natted") else { return };
    if !has_ipsec(&way) {
        return;
    }
    way.node.sh(
        "nft 'table ip t { chain c { type nat hook prerouting priority -100; ip daddr 10.9.0.1 dnat to 10.2.0.2; }; }'",
    );
    way.node.sh("ip xfrm policy add src 10.1.0.0/24 dst 10.9.0.1/32 dir fwd priority 1 action block");
    let found = unseen(&way.received("10.9.0.1", 80));
    assert!(found.len() == 1 && found[0].contains("(block; priority 1,"), "{found:?}");
    assert_eq!(unseen(&way.received(BACKEND, 80)), [""; 0]);
    let own = way.node.run(|| fate(&request(FateOrigin::Sent, "10.9.0.1", 80)).unwrap());
    assert_eq!(unseen(&own), [""; 0], "what the node sends is not forwarded");
}
