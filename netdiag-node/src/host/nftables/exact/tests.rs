//! Rules recorded from a real cluster (Kubernetes 1.36.3, dual-stack, one node).

use netdiag_common::forwarding::flowtable::FlowDevice;
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
                hooks.chains.extend(parse::called(payload).and_then(parse::Called::base));
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
                elements
                    .entry(SetKey { family, table, set })
                    .or_default()
                    .extend(parse::elements(payload).unwrap_or_default());
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

#[test]
fn a_flowtable_is_read_with_its_devices() {
    let (mut message, mut hook, mut devices) = (header(1), Vec::new(), Vec::new());
    for (kind, name) in [(1, &b"eth0\0"[..]), (1, b"veth"), (2, b"lxc")] {
        push(&mut devices, kind, name);
    }
    push(&mut hook, 1, &0_u32.to_be_bytes());
    push(&mut hook, 2, &(-5_i32).to_be_bytes());
    push(&mut hook, 3, &devices);
    for (kind, value) in [(1, &b"t\0"[..]), (2, b"f\0"), (3, &hook)] {
        push(&mut message, kind, value);
    }
    let read = parse::flowtable(&message).unwrap();
    let device = |name: &str, is_prefix| FlowDevice { name: name.into(), is_prefix };
    assert_eq!((read.to_string().as_str(), read.priority), ("inet t f", -5));
    assert_eq!(read.devices, [device("eth0", false), device("veth", true), device("lxc", true)]);
    let cut = parse::flowtable(&message[..message.len() - 4]);
    assert_eq!(cut, None);
}

#[test]
fn a_set_is_read_with_its_size_and_its_count() {
    let (mut message, mut description) = (header(2), Vec::new());
    push(&mut message, 5, &4_u32.to_be_bytes());
    let read = parse::set(&message).unwrap();
    assert_eq!((read.size, read.count), (None, None));
    push(&mut description, 1, &65_535_u32.to_be_bytes());
    push(&mut message, 9, &description);
    push(&mut message, 20, &7_u32.to_be_bytes());
    let read = parse::set(&message).unwrap();
    assert_eq!((read.key_bytes, read.size, read.count), (4, Some(65_535), Some(7)));
}

/// Attributes of nf_tables by which an expression is decoded: registers, numbers near the limits, and nested data.
fn attributes_of_an_expression() -> impl Strategy<Value = Vec<u8>> {
    let number = prop_oneof![
        0_u32..24,
        prop::sample::select(vec![0x7fff_ffff, 0x8000_0000, 0xffff_fffb, u32::MAX, 65_535, 256]),
        any::<u32>(),
    ];
    let value = prop_oneof![
        4 => number.prop_map(|number| number.to_be_bytes().to_vec()),
        2 => prop::collection::vec(any::<u8>(), 0..70).prop_map(|bytes| {
            let mut data = Vec::new();
            push(&mut data, 1, &bytes);
            data
        }),
        1 => prop::collection::vec(any::<u8>(), 0..20),
    ];
    prop::collection::btree_map(1_u16..12, value, 0..10).prop_map(|attributes| {
        let mut message = Vec::new();
        for (kind, value) in &attributes {
            push(&mut message, *kind, value);
        }
        message
    })
}

const EXPRESSIONS: [&str; 36] = [
    "immediate",
    "payload",
    "exthdr",
    "meta",
    "ct",
    "cmp",
    "range",
    "bitwise",
    "byteorder",
    "lookup",
    "dynset",
    "counter",
    "limit",
    "quota",
    "connlimit",
    "last",
    "numgen",
    "hash",
    "fib",
    "socket",
    "rt",
    "osf",
    "tunnel",
    "xfrm",
    "nat",
    "masq",
    "redir",
    "tproxy",
    "reject",
    "notrack",
    "log",
    "queue",
    "objref",
    "flow_offload",
    "synproxy",
    "match",
];

/// A rule as the kernel writes it.
fn rule_of(expressions: &[(usize, Vec<u8>)]) -> Vec<u8> {
    let mut list = Vec::new();
    for (name, data) in expressions {
        let mut body = Vec::new();
        push(&mut body, 1, &[EXPRESSIONS[*name].as_bytes(), b"\0"].concat());
        push(&mut body, 2, data);
        push(&mut list, 1, &body);
    }
    let mut message = header(2);
    push(&mut message, 3, &7_u64.to_be_bytes());
    push(&mut message, 4, &list);
    message
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn any_bytes_are_a_message_or_none(bytes in prop::collection::vec(any::<u8>(), 0..200), family in 0_u8..12) {
        for message in [bytes.clone(), [&[family, 0, 0, 0], &bytes[..]].concat()] {
            let _ = (parse::table(&message), parse::chain_key(&message), parse::called(&message));
            let _ = (parse::rule(&message), parse::set(&message), parse::elements(&message));
        }
    }

    /// What makes no sense to the kernel either is decoded, or named as unknown, and executed to an end.
    #[test]
    fn any_expression_is_executed_to_an_end(
        expressions in prop::collection::vec((0..EXPRESSIONS.len(), attributes_of_an_expression()), 1..6),
    ) {
        let rule = parse::rule(&rule_of(&expressions));
        let rule = rule.ok_or_else(|| TestCaseError::fail("a whole message is a rule"))?;
        prop_assert_eq!(rule.expressions.len(), expressions.len());
        let key = ChainKey { family: family_of(2).unwrap(), table: "t".into(), chain: "c".into() };
        let base = parse::called(&base_chain_message()).and_then(parse::Called::base).unwrap();
        let hooks = Some(Hooks { chains: vec![BaseChain { key: key.clone(), ..base }], ..Hooks::default() });
        let mut state = RuleState { hooks, ..RuleState::default() };
        state.chains.0.insert(key, Some(Chain { rules: vec![rule], ..Chain::default() }));
        prop_assert!(paths(state, &to_service("10.96.0.1", 443)).len() <= 64);
    }

    /// A rule with fewer conditions than it has would match what it does not.
    #[test]
    fn a_cut_rule_is_no_rule(
        expressions in prop::collection::vec((0..EXPRESSIONS.len(), attributes_of_an_expression()), 1..6),
        cut: prop::sample::Index,
    ) {
        let message = rule_of(&expressions);
        let whole = parse::rule(&message);
        let cut = parse::rule(&message[..cut.index(message.len())]);
        prop_assert!(cut.is_none() || cut == whole, "{:?}", cut);
    }
}

/// At prerouting, of a table of the family ip.
fn base_chain_message() -> Vec<u8> {
    let (mut message, mut hook) = (header(2), Vec::new());
    push(&mut hook, 1, &0_u32.to_be_bytes());
    push(&mut hook, 2, &0_u32.to_be_bytes());
    for (kind, value) in [(1, &b"t\0"[..]), (2, &1_u64.to_be_bytes()), (3, b"c\0"), (4, &hook), (7, b"filter\0")] {
        push(&mut message, kind, value);
    }
    message
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
