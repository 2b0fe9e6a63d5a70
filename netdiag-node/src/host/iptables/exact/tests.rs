//! Tables as a node had them, and tables that no kernel would give.

use netdiag_common::forwarding::expression::Verdict;
use netdiag_common::forwarding::packet::{Origin, Packet, TCP, tcp};
use netdiag_common::forwarding::state::{ChainKind, Hooks, Rule};
use netdiag_common::forwarding::{Expression, Key, RuleState, Step, step};
use proptest::prelude::*;

use super::super::entry::between;
use super::super::sockopt::{Blob, Family as Command};
use super::super::{entries, replay_blobs};
use super::*;
use crate::host::budget::{Budget, Limits};
use crate::host::forwarding::open;

/// Kubernetes 1.36.3, dual-stack, one node.
const RECORDING: &[u8] = include_bytes!("../../../../tests/fixtures/rules/kube-proxy-iptables-legacy.sockopt");

const LIMITS: Limits = Limits { rules: 100_000, service_rules: 100_000, service_elements: 0, with_text: true };

#[test]
fn every_rule_of_a_recorded_table_is_there_with_its_number() {
    let (mut chains, mut rules) = (0, 0);
    for (family, name, blob) in replay_blobs(RECORDING) {
        let worded = entries::parse(family, &name, &blob, &mut Budget::new(LIMITS)).unwrap();
        let table = IndexedTable::new(family, &name, blob).unwrap();
        for chain in &worded.chains {
            let exact = table.chain(&chain.name).unwrap();
            assert_eq!(exact.rules.len(), chain.rules.len(), "{name} {}", chain.name);
            for (exact, worded) in exact.rules.iter().zip(&chain.rules) {
                assert_eq!(exact.handle, worded.handle);
                assert_eq!(exact.comment.as_deref(), worded.comment.as_deref());
                assert_eq!(table.worded(&chain.name, exact.handle).as_ref(), Some(worded));
            }
            chains += 1;
            rules += chain.rules.len();
        }
        assert!(table.chain("nobody").is_none());
    }
    assert!(chains > 100 && rules > 200, "{chains} chains, {rules} rules");
}

#[test]
fn base_chains_have_the_hooks_and_priorities_of_their_table() {
    let (family, name, blob) = replay_blobs(RECORDING).into_iter().find(|(_, name, _)| name == "nat").unwrap();
    let table = IndexedTable::new(family, &name, blob).unwrap();
    let found: Vec<_> = table.base_chains().map(|base| (base.key.to_string(), base.hook, base.priority)).collect();
    let expected = [
        ("PREROUTING", Hook::Prerouting, -100),
        ("INPUT", Hook::Input, 100),
        ("OUTPUT", Hook::Output, -100),
        ("POSTROUTING", Hook::Postrouting, 100),
    ];
    assert_eq!(found, expected.map(|(chain, hook, at)| (format!("legacy iptables nat {chain}"), hook, at)));
    assert!(table.base_chains().all(|base| base.policy == Verdict::Accept));
}

#[test]
fn a_jump_is_one_verdict_and_a_comment_is_no_question() {
    let (family, name, blob) = replay_blobs(RECORDING).into_iter().find(|(_, name, _)| name == "nat").unwrap();
    let table = IndexedTable::new(family, &name, blob).unwrap();
    let chain = table.chain("PREROUTING").unwrap();
    let rule = chain.rules.iter().find(|rule| rule.comment.as_deref() == Some("kubernetes service portals")).unwrap();
    assert!(matches!(&rule.expressions[..], [Expression::Immediate { .. }]), "{rule:?}");
}

/// Answers whatever is asked, with the chains of one table.
fn answer(state: &mut RuleState, table: &IndexedTable, key: Key) {
    match open::answer(state, key) {
        Some(Key::Hooks) => {
            state.hooks = Some(Hooks { chains: table.base_chains().collect(), ..Hooks::default() });
        }
        Some(Key::Chain(key)) => {
            let chain = table.chain(&key.chain);
            state.chains.0.insert(key, chain);
        }
        Some(key) => panic!("nobody asked for {key:?} before"),
        None => {}
    }
}

/// Sends one packet through a table; what nobody should ever need is an endless number of steps.
fn evaluate(table: &IndexedTable) {
    let packet = match table.family() {
        Family::LegacyIp => ("10.0.0.1", "10.96.0.1"),
        _ => ("fd00::1", "fd00::2"),
    };
    let ends = (packet.0.parse().unwrap(), packet.1.parse().unwrap());
    let packet = Packet::between(Origin::Received { interface: 2 }, ends.0, ends.1, TCP, &tcp(4242, 443, 2)).unwrap();
    let mut state = RuleState::default();
    for _ in 0..400 {
        match step(&state, &packet) {
            Step::Done(_) => return,
            Step::Missing { keys } => keys.into_iter().for_each(|key| answer(&mut state, table, key)),
        }
    }
    panic!("more than 400 steps");
}

#[test]
fn a_packet_goes_through_every_recorded_table() {
    for (family, name, blob) in replay_blobs(RECORDING) {
        evaluate(&IndexedTable::new(family, &name, blob).unwrap());
    }
}

/// Values that have broken parsers: nothing, one, an end, the sign, all bits.
const NASTY: [u32; 10] = [0, 1, 31, 32, 0x7fff, 0xffff, 0x7fff_ffff, 0x8000_0000, 0xffff_fffb, 0xffff_ffff];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_broken_table_is_an_error_or_evaluated(
        table in 0usize..100,
        changes in prop::collection::vec((0usize..100_000, 0usize..8, 0usize..20, any::<u16>()), 1..4),
        cut in prop::option::weighted(0.1, 0usize..50_000),
    ) {
        let mut blobs = replay_blobs(RECORDING);
        let count = blobs.len();
        let (family, name, mut blob) = blobs.swap_remove(table % count);
        let entries = between(family, &blob.entries, 0..blob.entries.len());
        let places: Vec<usize> = entries.map(|entry| entry.unwrap().at).collect();
        for (entry, field, value, other) in changes {
            let at = places[entry % places.len()];
            // Nasty values, other entries' offsets (also backwards), and small steps.
            let value = match value {
                10..15 => u32::try_from(places[usize::from(other) % places.len()]).unwrap(),
                15.. => u32::from(other),
                value => NASTY[value],
            };
            change(&mut blob, family, at, field, value);
        }
        if let Some(cut) = cut {
            blob.entries.truncate(cut);
        }
        if let Ok(table) = IndexedTable::new(family, &name, blob) {
            evaluate(&table);
            let _ = table.has_part(&|name, _| name == "nobody");
        }
    }

    #[test]
    fn a_cut_table_is_no_table(table in 0usize..100, cut: prop::sample::Index) {
        let mut blobs = replay_blobs(RECORDING);
        let count = blobs.len();
        let (family, name, mut blob) = blobs.swap_remove(table % count);
        blob.entries.truncate(cut.index(blob.entries.len()));
        prop_assert!(IndexedTable::new(family, &name, blob).is_err());
    }

    /// Structures of other sizes than ours, with anything in them.
    #[test]
    fn any_structure_is_executed_to_an_end(
        entry in prop::collection::vec(any::<u8>(), 0..140),
        parts in prop::collection::vec((0..MATCHES.len(), 0u32..5, structure()), 0..4),
        target in (0..TARGETS.len(), 0u32..5, structure()),
        ipv6: bool,
    ) {
        let matches = parts.into_iter().map(|(name, revision, info)| Expression::XtMatch { name: MATCHES[name].into(), revision, info });
        let (name, revision, info) = target;
        let mut expressions = vec![Expression::XtEntry { info: entry }];
        expressions.extend(matches);
        expressions.push(Expression::XtTarget { name: TARGETS[name].into(), revision, info });
        let lone = [Expression::XtTarget { name: TARGETS[name].into(), revision, info: vec![0; 200] }];
        for expressions in [expressions.clone(), expressions[1..].to_vec(), lone.to_vec()] {
            evaluate_rule(Rule { handle: 1, expressions, comment: None }, ipv6);
        }
    }

    #[test]
    fn garbage_is_no_table(bytes in prop::collection::vec(any::<u8>(), 0..2000), hooks: u32, ipv6: bool) {
        let family = if ipv6 { Command::Ipv6 } else { Command::Ipv4 };
        let blob = Blob { valid_hooks: hooks, hook_entry: [0; 5], underflow: [0; 5], entries: bytes };
        prop_assert!(IndexedTable::new(family, "filter", blob).is_err());
    }
}

const MATCHES: [&str; 38] = [
    "comment",
    "conntrack",
    "state",
    "addrtype",
    "mark",
    "connmark",
    "statistic",
    "recent",
    "multiport",
    "set",
    "physdev",
    "owner",
    "rpfilter",
    "tcp",
    "udp",
    "udplite",
    "sctp",
    "dccp",
    "icmp",
    "icmp6",
    "string",
    "u32",
    "bpf",
    "limit",
    "hashlimit",
    "tcpmss",
    "mac",
    "pkttype",
    "dscp",
    "ttl",
    "hl",
    "length",
    "iprange",
    "socket",
    "rt",
    "frag",
    "ipv6header",
    "eui64",
];
const TARGETS: [&str; 22] = [
    "MARK",
    "CONNMARK",
    "TCPMSS",
    "CT",
    "NFQUEUE",
    "TPROXY",
    "DNAT",
    "SNAT",
    "MASQUERADE",
    "REDIRECT",
    "NETMAP",
    "REJECT",
    "LOG",
    "NFLOG",
    "DSCP",
    "TOS",
    "TTL",
    "HL",
    "SET",
    "SYNPROXY",
    "CLASSIFY",
    "NOTRACK",
];

/// Bytes, or words with values that have broken parsers.
fn structure() -> impl Strategy<Value = Vec<u8>> {
    let nasty = prop::collection::vec(prop_oneof![prop::sample::select(NASTY.to_vec()), 0u32..16], 0..40);
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..300),
        nasty.prop_map(|words| words.into_iter().flat_map(u32::to_ne_bytes).collect()),
    ]
}

/// Sends a packet through one rule at each hook of a received one.
fn evaluate_rule(rule: Rule, ipv6: bool) {
    let family = if ipv6 { Family::LegacyIp6 } else { Family::LegacyIp };
    let ends = if ipv6 { ["fd00::1", "fd00::2"] } else { ["10.0.0.1", "10.96.0.1"] }.map(|end| end.parse().unwrap());
    let packet = Packet::between(Origin::Received { interface: 2 }, ends[0], ends[1], TCP, &tcp(4242, 443, 2)).unwrap();
    for (kind, hook) in
        [(ChainKind::Filter, Hook::Prerouting), (ChainKind::Nat, Hook::Prerouting), (ChainKind::Nat, Hook::Postrouting)]
    {
        let key = ChainKey { family, table: "t".into(), chain: "c".into() };
        let base = BaseChain { key: key.clone(), kind, hook, priority: 0, policy: Verdict::Accept, made: (0, 0) };
        let hooks = Some(Hooks { chains: vec![base], ..Hooks::default() });
        let mut state = RuleState { hooks, ..RuleState::default() };
        state.chains.0.insert(key, Some(Chain { rules: vec![rule.clone()], ..Chain::default() }));
        assert!(has_end(&mut state, &packet), "more than 400 steps: {rule:?}");
    }
}

fn has_end(state: &mut RuleState, packet: &Packet) -> bool {
    for _ in 0..400 {
        match step(state, packet) {
            Step::Done(_) => return true,
            Step::Missing { keys } => keys.into_iter().for_each(|key| match open::answer(state, key) {
                Some(Key::IpSet { index }) => {
                    state.ip_sets.0.insert(index, None);
                }
                Some(Key::IpSetElement(query)) => {
                    state.ip_set_elements.0.insert(query, Some(true));
                }
                Some(key) => panic!("nobody asked for {key:?} before"),
                None => {}
            }),
        }
    }
    false
}

/// Overwrites one field of the entry at an offset, or one of the table's.
fn change(blob: &mut Blob, family: Command, at: usize, field: usize, value: u32) {
    let (offsets, matches) = if family == Command::Ipv4 { (88, 112) } else { (140, 168) };
    let short = u16::try_from(value & 0xffff).unwrap();
    let target = usize::from(u16::from_ne_bytes(blob.entries[at + offsets..at + offsets + 2].try_into().unwrap()));
    let (place, bytes) = match field {
        0 => (at + offsets, short.to_ne_bytes().to_vec()),
        1 => (at + offsets + 2, short.to_ne_bytes().to_vec()),
        // The first match's size, or the target's.
        2 => (at + matches, short.to_ne_bytes().to_vec()),
        3 => (at + target, short.to_ne_bytes().to_vec()),
        // The name's first letter, the verdict.
        4 => (at + target + 2, short.to_ne_bytes()[..1].to_vec()),
        5 => (at + target + 32, value.to_ne_bytes().to_vec()),
        6 => {
            blob.hook_entry[at % 5] = value;
            return;
        }
        _ => {
            blob.underflow[at % 5] = value;
            return;
        }
    };
    if let Some(found) = blob.entries.get_mut(place..place + bytes.len()) {
        found.copy_from_slice(&bytes);
    }
}
