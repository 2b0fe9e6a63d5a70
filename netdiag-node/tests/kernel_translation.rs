//! A dropped packet of a connection through DNAT names the address before it, in both families, with its hook, its direction
//! and since when; one that never met DNAT names none.

#[expect(dead_code, reason = "other tests use the rest")]
mod support;

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use netdiag_common::Window;
use netdiag_common::observation::Owner;
use netdiag_common::observation::kfree_skb::{Direction, DropGroup, Translation};
use netdiag_common::observation::rules::Hook;
use netdiag_node::clock::now;
use support::{Namespace, eventually, is_reason, load, owner, patient};

#[test]
fn the_address_before_dnat_is_named() {
    const TEST: &str = "the_address_before_dnat_is_named";
    let Some(mut drops) = load(TEST, None) else { return };
    let [client, node] = std::array::from_fn(|_| Namespace::new());
    client.connect("eth0", &node, "veth");
    client.sh("ip addr add 10.9.1.2/24 dev eth0; ip addr add fd09:1::2/64 dev eth0 nodad
               ip route add default via 10.9.1.1; ip -6 route add default via fd09:1::1");
    // The endpoints need not exist: what goes to them is dropped before.
    node.sh("ip addr add 10.9.1.1/24 dev veth; ip addr add fd09:1::1/64 dev veth nodad
             ip link add cable type veth peer name unused; ip link set cable up
             ip addr add 10.9.2.1/24 dev cable; ip addr add fd09:2::1/64 dev cable nodad
             echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
             nft 'table inet t {
               chain pre {
                 type nat hook prerouting priority -100;
                 ip daddr 10.96.0.10 tcp dport 80 dnat ip to 10.9.2.2:8080
                 ip6 daddr fd96::10 tcp dport 80 dnat ip6 to [fd09:2::2]:8080
               }
               chain forward {
                 type filter hook forward priority 0;
                 tcp dport 8080 drop
               }
             }'");
    let before: [SocketAddr; 2] = ["10.96.0.10:80".parse().unwrap(), "[fd96::10]:80".parse().unwrap()];
    let after: [SocketAddr; 2] = ["10.9.2.2:8080".parse().unwrap(), "[fd09:2::2]:8080".parse().unwrap()];
    let connect = |to: SocketAddr| {
        // A neighbour that is not resolved yet loses the first try.
        client.run(|| TcpStream::connect_timeout(&to, Duration::from_millis(300)).map(drop).unwrap_err());
    };
    let owner = owner(&[(&node, "host")]);
    for to in before.into_iter().chain(after) {
        let started = now();
        let group = eventually(&format!("a drop of a connection to {to}"), || {
            connect(to);
            drops.harvest(now());
            let seen = drops.observe(now(), Window::Minute, &owner);
            assert_eq!(seen.accounts.unaccounted(), 0);
            assert!(!seen.unseen.iter().any(|gap| gap.what.contains("conntrack")), "{:?}", seen.unseen);
            let endpoint = after[usize::from(to.is_ipv6())].ip();
            let translated = before.contains(&to);
            let is_it = |group: &&DropGroup| {
                group.netns == Owner::Host
                    && is_reason(&group.reason, "NETFILTER_DROP")
                    && group.tuple.as_ref().is_some_and(|tuple| tuple.destination == endpoint)
                    && group.translation.is_some() == translated
                    && group.hook.is_some()
            };
            seen.groups.iter().find(is_it).cloned()
        });
        let expected =
            before.contains(&to).then(|| Translation { before: to, after: after[usize::from(to.is_ipv6())] });
        assert_eq!(group.translation, expected, "{group:?}");
        assert_eq!((group.hook, group.direction), (Some(Hook::Forward), Some(Direction::In)));
        assert_eq!(group.tracked, Some(true));
        // The clock of drops moves with the kernel's ticks, which an emulated processor may see late.
        let (since, earliest) = (group.since.unwrap(), started - patient(Duration::from_millis(20)));
        assert!(since > earliest && since <= group.last_at, "{earliest} < {since} <= {}", group.last_at);
    }
    assert!(drops.observe(now(), Window::TenSeconds, &owner).window_s < 60.0);
}
