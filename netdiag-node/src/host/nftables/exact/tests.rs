//! Rules recorded from a real cluster (Kubernetes 1.36.3, dual-stack, one node).

use netdiag_common::forwarding::packet::{Origin, TCP, tcp};
use netdiag_common::forwarding::path::{End, Path};
use netdiag_common::forwarding::set::{Elements, Index};
use netdiag_common::forwarding::state::Hooks;
use netdiag_common::forwarding::{Expression, Key, Packet, RuleState, Step, step};
use proptest::prelude::*;

use super::super::socket::recorded;
use super::*;
use crate::host::forwarding::open;

const KUBE_PROXY: [&[u8]; 2] = [
    include_bytes!("../../../../tests/fixtures/rules/kube-proxy-nftables.netlink"),
    include_bytes!("../../../../tests/fixtures/rules/kube-proxy-iptables-nft.netlink"),
];

/// Longer than `struct nlmsghdr`: what readers get is what follows it.
const HEADER_BYTES: usize = 16;

/// All that a recording has.
fn whole(recording: &[u8]) -> RuleState {
    let mut state = RuleState::default();
    let mut hooks = Hooks::default();
    let mut elements: HashMap<SetKey, Vec<Element>> = HashMap::new();
    for message in recorded(recording) {
        let Some(payload) = message.raw.get(HEADER_BYTES..) else { continue };
        let of = super::super::attribute::Attributes(message.body);
        let Some(family) = family_of(message.family) else { continue };
        let name = |kind| of.text(kind).map(|text| Arc::from(&*text));
        match message.kind {
            libc::NFT_MSG_NEWCHAIN => {
                hooks.chains.extend(parse::base_chain(payload));
                if let Some(key) = parse::chain_key(payload) {
                    state.chains.0.insert(key, Some(Chain::default()));
                }
            }
            libc::NFT_MSG_NEWRULE => {
                let (Some(table), Some(chain), Some(rule)) = (name(1), name(2), parse::rule(payload)) else { continue };
                if let Some(Some(chain)) = state.chains.0.get_mut(&ChainKey { family, table, chain }) {
                    chain.rules.push(rule);
                }
            }
            libc::NFT_MSG_NEWSET => {
                let (Some(table), Some(set)) = (name(1), name(2)) else { continue };
                state.sets.0.insert(SetKey { family, table, set }, parse::set(payload));
            }
            libc::NFT_MSG_NEWSETELEM => {
                let (Some(table), Some(set)) = (name(1), name(2)) else { continue };
                elements.entry(SetKey { family, table, set }).or_default().extend(parse::elements(payload));
            }
            _ => {}
        }
    }
    for (key, set) in &mut state.sets.0 {
        if let Some(set) = set {
            set.elements = Elements::Whole(Index::new(set.flags, elements.remove(key).unwrap_or_default(), None));
        }
    }
    state.hooks = Some(hooks);
    state
}

/// The paths of a packet in a host whose routes all lead out of one interface.
fn paths(mut state: RuleState, packet: &Packet) -> Vec<Path> {
    for _ in 0..100 {
        match step(&state, packet) {
            Step::Done(outcome) => return outcome.paths,
            Step::Missing { keys } => keys.into_iter().for_each(|key| answer(&mut state, key)),
        }
    }
    panic!("no end in sight");
}

fn answer(state: &mut RuleState, key: Key) {
    match open::answer(state, key) {
        Some(Key::Chain(key)) => {
            state.chains.0.insert(key, None);
        }
        Some(Key::Set(key)) => {
            state.sets.0.insert(key, None);
        }
        Some(key) => panic!("{key:?} is not recorded"),
        None => {}
    }
}

fn to_service(address: &str, port: u16) -> Packet {
    let ends = ("10.244.0.9".parse().unwrap(), address.parse().unwrap());
    Packet::between(Origin::Received { interface: 2 }, ends.0, ends.1, TCP, &tcp(40_000, port, 2)).unwrap()
}

#[test]
fn every_expression_of_kube_proxy_is_known() {
    for recording in KUBE_PROXY {
        let state = whole(recording);
        let rules = state.chains.0.values().flatten().flat_map(|chain| &chain.rules);
        let expressions: Vec<&Expression> = rules.flat_map(|rule| &rule.expressions).collect();
        assert!(expressions.len() > 100, "{}", expressions.len());
        let unknown = expressions.iter().find(|expression| matches!(expression, Expression::Unknown { .. }));
        assert_eq!(unknown, None);
    }
}

#[test]
fn an_address_of_a_service_leads_to_its_endpoints_in_both_modes() {
    for recording in KUBE_PROXY {
        // The Service `kubernetes`, by its first address.
        let paths = paths(whole(recording), &to_service("10.96.0.1", 443));
        for path in &paths {
            let translated = path.packet.ports().map(|(_, port)| port) == Some(6443);
            assert!(translated && matches!(path.end, End::Sent { .. }), "{path:?}");
        }
        let chances: f64 = paths.iter().filter_map(Path::chance).sum();
        assert!((chances - 1.0).abs() < 1e-6, "{chances}");
    }
}

proptest! {
    // Each case reads a whole recording.
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever a broken or newer kernel sends, the reading and the evaluation end.
    #[test]
    fn damaged_messages_never_panic(
        at in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..200),
        which in 0..2_usize,
    ) {
        let mut recording = KUBE_PROXY[which].to_vec();
        for (at, byte) in at {
            let at = at.index(recording.len());
            recording[at] = byte;
        }
        let paths = paths(whole(&recording), &to_service("10.96.0.1", 443));
        prop_assert!(paths.len() <= 64);
    }
}
