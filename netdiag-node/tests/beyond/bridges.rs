//! Filters of bridges.

use netdiag_common::observation::fate::{FateInterfaceKey, FateOrigin};

use crate::lab::fate;
use crate::way::{BACKEND, Way, request, unseen};

#[test]
fn filters_of_a_bridge_are_named_where_its_port_is_on_the_way() {
    let Some(way) = Way::start("ebtables") else { return };
    way.node.sh("nft 'table bridge guard { chain pass { type filter hook forward priority 0; drop; }; }'
         ip link add br0 type bridge; ip link set br0 up; ip addr flush dev r0; ip link set r0 master br0
         ip addr add 10.1.0.1/24 dev br0");
    let received = |device: &str| {
        let request = request(FateOrigin::Received(FateInterfaceKey::Name(device.into())), BACKEND, 80);
        way.node.run(|| fate(&request).unwrap())
    };
    for device in ["r0", "br0"] {
        let found = received(device);
        assert!(unseen(&found).contains(&"chain bridge guard pass at forward".to_owned()), "{device}: {found:?}");
        let gaps = &found.outcome.paths[0].gaps;
        let named = gaps.iter().filter(|gap| *gap == "chain bridge guard pass at forward is not evaluated");
        assert_eq!(named.count(), 1, "{gaps:?}");
    }
    assert_eq!(unseen(&received("r1")), [""; 0]);
}
