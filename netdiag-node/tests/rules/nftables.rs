//! Rules written with `nft -f`.

use netdiag_common::observation::Protocol;
use netdiag_common::observation::rules::{Backend, Hook, Match, NatTarget, Verdict};

use crate::sandbox::{
    chain, destination, destination_ports, in_namespace, meaning, protocol, read, run, source, states, table, texts,
};

/// Loads one chain of an inet table and hands the reading of that chain to `check`.
fn written(name: &'static str, rules: &'static str, check: fn(&netdiag_common::observation::rules::Chain)) {
    in_namespace(name, move || {
        if run(name, "nft", &["-f", "-"], &format!("table inet t {{\n{rules}\n}}")) {
            check(chain(table(&read(), "inet", "t"), "c"));
        }
    });
}

#[test]
fn base_chains_keep_hook_priority_and_policy() {
    written("base_chains", "chain c { type filter hook forward priority 10; policy drop; }", |chain| {
        let base = chain.base.as_ref().unwrap();
        assert_eq!((base.hook, base.priority, &*base.kind), (Hook::Forward, 10, "filter"));
        assert_eq!(base.policy, Verdict::Drop);
    });
}

#[test]
fn addresses_and_ports_are_decoded_with_their_family() {
    written(
        "addresses_and_ports",
        "chain c {
            ip saddr 10.1.0.0/16 ip daddr 192.0.2.7 tcp dport 80 counter drop comment \"why not\"
            ip saddr != 10.0.0.0/9 udp dport 1000-2000 reject
            ip6 saddr fd00::/64 meta l4proto icmpv6 accept
            ip daddr 10.0.0.3-10.0.0.4 tcp dport != { 22, 80-90 } return
            tcp dport >= 1024 accept
        }",
        |chain| {
            let (ip, ip6) = (Match::Family { family: "ip".into() }, Match::Family { family: "ip6".into() });
            let (tcp, udp) = (protocol(Protocol::Tcp), protocol(Protocol::Udp));
            let reject = |with: &str| Verdict::Reject { with: with.into() };
            let wanted = [
                (
                    vec![
                        ip.clone(),
                        source(&["10.1.0.0/16"], false),
                        destination(&["192.0.2.7/32"], false),
                        tcp.clone(),
                        destination_ports(&[(80, 80)], false),
                    ],
                    Verdict::Drop,
                ),
                (
                    vec![ip.clone(), source(&["10.0.0.0/9"], true), udp, destination_ports(&[(1000, 2000)], false)],
                    reject("icmp port-unreachable"),
                ),
                (vec![ip6, source(&["fd00::/64"], false), protocol(Protocol::Icmpv6)], Verdict::Accept),
                (
                    vec![
                        ip,
                        destination(&["10.0.0.3/32", "10.0.0.4/32"], false),
                        tcp.clone(),
                        destination_ports(&[(22, 22), (80, 90)], true),
                    ],
                    Verdict::Return,
                ),
                (vec![tcp, destination_ports(&[(1024, 65535)], false)], Verdict::Accept),
            ];
            for (found, wanted) in meaning(chain).into_iter().zip(wanted) {
                assert_eq!(found, wanted);
            }
            assert_eq!(chain.rules[0].comment.as_deref(), Some("why not"));
            assert_eq!(chain.rules[0].counter.map(|counter| counter.packets), Some(0));
            assert_eq!(
                texts(chain)[0],
                "ip saddr 10.1.0.0/16 ip daddr 192.0.2.7 tcp dport 80 counter packets 0 bytes 0 drop comment \"why not\""
            );
        },
    );
}

#[test]
fn connection_states_are_decoded_in_every_spelling() {
    written(
        "connection_states",
        "chain c {
            ct state established,related accept
            ct state invalid drop
            ct state != new accept
            ct state { new, untracked } drop
            ct state vmap { established : accept, invalid : drop }
        }",
        |chain| {
            let found = meaning(chain);
            assert_eq!(found[0], (vec![states(&["established", "related"], false)], Verdict::Accept));
            assert_eq!(found[1], (vec![states(&["invalid"], false)], Verdict::Drop));
            assert_eq!(found[2], (vec![states(&["new"], true)], Verdict::Accept));
            assert_eq!(found[3].1, Verdict::Drop);
            assert!(matches!(&found[3].0[..], [Match::ConntrackState { states, negated: false }] if states.len() == 2));
            // One rule per element of the map, with the same handle.
            assert!(found[4..].contains(&(vec![states(&["established"], false)], Verdict::Accept)));
            assert!(found[4..].contains(&(vec![states(&["invalid"], false)], Verdict::Drop)));
            assert_eq!(chain.rules[4].handle, chain.rules[5].handle);
        },
    );
}

#[test]
fn interfaces_are_named_also_by_index_and_prefix() {
    written(
        "interfaces",
        "chain c {
            iifname \"veth*\" drop
            oifname { \"eth0\", \"eth1\" } accept
            iif lo accept
            iifname != \"cni0\" drop
        }",
        |chain| {
            let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
            let found: Vec<_> = chain.rules.iter().map(|rule| rule.matches[0].clone()).collect();
            let wanted = [
                Match::InputInterface { names: names(&["veth*"]), negated: false },
                Match::OutputInterface { names: names(&["eth0", "eth1"]), negated: false },
                Match::InputInterface { names: names(&["lo"]), negated: false },
                Match::InputInterface { names: names(&["cni0"]), negated: true },
            ];
            assert_eq!(found, wanted);
            assert_eq!(texts(chain)[0], "iifname \"veth*\" drop");
        },
    );
}

#[test]
fn small_sets_are_listed_and_tuples_become_one_rule_each() {
    written(
        "small_sets",
        "set nets { type ipv4_addr; flags interval; elements = { 10.0.0.0/8, 192.168.1.0/24 }; }
        set pairs { type ipv4_addr . inet_service; elements = { 10.0.0.1 . 80, 10.0.0.2 . 443 }; }
        set ranges { type ipv4_addr . inet_service; flags interval; elements = { 10.1.0.0/16 . 8000-8080 }; }
        chain c {
            ip saddr @nets drop
            ip daddr . tcp dport @pairs reject with tcp reset
            ip daddr . udp dport @ranges drop
            ip daddr . tcp dport != @pairs drop
        }",
        |chain| {
            let found = meaning(chain);
            assert_eq!(found[0].0[1], source(&["10.0.0.0/8", "192.168.1.0/24"], false));
            assert!(texts(chain)[0].ends_with("ip saddr @nets drop"), "{:?}", texts(chain));
            for (rule, (address, port)) in found[1..3].iter().zip([("10.0.0.1/32", 80), ("10.0.0.2/32", 443)]) {
                assert!(rule.0.contains(&destination(&[address], false)), "{rule:?}");
                assert!(rule.0.contains(&destination_ports(&[(port, port)], false)), "{rule:?}");
                assert_eq!(rule.1, Verdict::Reject { with: "tcp reset".into() });
            }
            assert!(found[3].0.contains(&destination(&["10.1.0.0/16"], false)), "{:?}", found[3]);
            assert!(found[3].0.contains(&destination_ports(&[(8000, 8080)], false)), "{:?}", found[3]);
            // "Not one of these pairs" is no list of conditions: undecided, never left out.
            assert!(matches!(found[4].0.last(), Some(Match::Other { .. })), "{:?}", found[4]);
        },
    );
}

#[test]
fn lookups_in_several_sets_of_tuples_do_not_multiply() {
    in_namespace("several_sets", || {
        let tuples = |first: &str| (1..=100).map(|i| format!("{first}.{i} . {i}")).collect::<Vec<_>>().join(", ");
        let (a, b) = (tuples("10.0.0"), tuples("10.0.1"));
        let rules = format!(
            "table ip t {{
                chain c {{
                    ip saddr . tcp sport {{ {a} }} ip daddr . tcp dport {{ {b} }} drop
                }}
            }}"
        );
        if run("several_sets", "nft", &["-f", "-"], &rules) {
            let ruleset = read();
            let rules = &chain(table(&ruleset, "ip", "t"), "c").rules;
            assert_eq!(rules.len(), 100);
            assert!(
                rules.iter().all(|rule| matches!(rule.matches.last(), Some(Match::Other { .. }))),
                "{:?}",
                rules[0]
            );
        }
    });
}

#[test]
fn large_sets_are_named_and_leave_the_rule_undecided() {
    in_namespace("large_sets", || {
        let elements: Vec<_> = (0..2000u32).map(|i| format!("10.{}.{}.1", i / 250, i % 250)).collect();
        let rules = format!(
            "table ip t {{ set many {{ type ipv4_addr; elements = {{ {} }}; }}
             chain c {{
                ip saddr @many drop
             }}
             }}",
            elements.join(", ")
        );
        if run("large_sets", "nft", &["-f", "-"], &rules) {
            let ruleset = read();
            let chain = chain(table(&ruleset, "ip", "t"), "c");
            assert_eq!(meaning(chain), [(vec![Match::Other { text: "ip saddr @many".into() }], Verdict::Drop)]);
        }
    });
}

#[test]
fn translations_name_their_targets() {
    in_namespace("translations", || {
        let rules = "table ip t {
            chain c { type nat hook prerouting priority -100;
                tcp dport 80 dnat to 10.0.0.1:8080
                dnat to numgen random mod 2 map { 0 : 10.0.0.2, 1 : 10.0.0.3 }
                dnat ip to tcp dport map { 443 : 10.0.0.4 . 8443, 444 : 10.0.0.5 . 8444 }
                tcp dport 90 redirect to :9090
            }
            chain s { type nat hook postrouting priority 100;
                ip saddr 10.0.0.0/8 snat to 192.0.2.1
                masquerade
            }
        }";
        if run("translations", "nft", &["-f", "-"], rules) {
            let ruleset = read();
            let table = table(&ruleset, "ip", "t");
            let verdicts: Vec<_> = meaning(chain(table, "c")).into_iter().map(|(_, verdict)| verdict).collect();
            let to = |address: &str, port| NatTarget { address: Some(address.parse().unwrap()), port };
            assert_eq!(verdicts[0], Verdict::Dnat { to: vec![to("10.0.0.1", Some(8080))] });
            assert_eq!(verdicts[1], Verdict::Dnat { to: vec![to("10.0.0.2", None), to("10.0.0.3", None)] });
            assert_eq!(verdicts[2], Verdict::Dnat { to: vec![to("10.0.0.4", Some(8443))] });
            assert_eq!(verdicts[3], Verdict::Dnat { to: vec![to("10.0.0.5", Some(8444))] });
            assert!(matches!(verdicts[4], Verdict::Other { .. }));
            let verdicts: Vec<_> = meaning(chain(table, "s")).into_iter().map(|(_, verdict)| verdict).collect();
            assert_eq!(verdicts, [Verdict::Snat { to: vec![to("192.0.2.1", None)] }, Verdict::Masquerade]);
        }
    });
}

#[test]
fn what_has_no_word_stays_visible_as_other() {
    written(
        "other",
        "chain c {
            limit rate 10/second accept
            tcp flags syn / syn,ack drop
            meta mark 0x1 drop
            fib daddr type local accept
            icmp type echo-request drop
            log prefix \"seen \" counter
            ip daddr . tcp dport vmap { 10.0.0.1 . 80 : drop }
            @th,160,16 0x1234 drop
        }",
        |chain| {
            for (rule, words) in chain.rules.iter().zip([
                "limit rate 10/second",
                "tcp flags & 0x12 == 0x2",
                "meta mark 0x1",
                "fib daddr type local",
                "icmp type 8",
            ]) {
                let others: Vec<_> = rule.matches.iter().filter(|m| matches!(m, Match::Other { .. })).collect();
                assert_eq!(others.len(), 1, "{rule:?}");
                assert!(rule.text.contains(words), "{} has no {words}", rule.text);
            }
            let log = &chain.rules[5];
            assert_eq!((&log.verdict, log.matches.len()), (&Verdict::Continue, 0), "{log:?}");
            let tuple = &chain.rules[6];
            assert_eq!(tuple.verdict, Verdict::Drop);
            assert!(tuple.matches.contains(&destination_ports(&[(80, 80)], false)), "{tuple:?}");
            assert!(matches!(chain.rules[7].matches[..], [Match::Other { .. }]), "{:?}", chain.rules[7]);
        },
    );
}

#[test]
fn what_others_wrote_is_quoted_without_control_characters() {
    written(
        "control_characters",
        "chain c {
            log prefix \"a\u{1b}[2J\u{202e}b \" drop comment \"c\u{7}\u{202e}d\u{9b}\"
        }",
        |chain| {
            let text = r#"log prefix "a\u{1b}[2J\u{202e}b " drop comment "c\u{7}\u{202e}d\u{9b}""#;
            assert_eq!(texts(chain), [text]);
            assert_eq!(chain.rules[0].comment.as_deref(), Some("c\u{7}\u{202e}d\u{9b}"));
            assert_eq!(chain.rules[0].verdict, Verdict::Drop);
        },
    );
}

#[test]
fn jumps_and_policies_of_several_families_are_kept_apart() {
    in_namespace("families", || {
        let rules = "
            table ip a {
                chain y {
                    drop
                }
                chain x {
                    ip protocol tcp jump y
                    goto y
                }
            }
            table ip6 a {
                chain x {
                    accept
                }
            }
            table netdev n {
                chain i {
                    type filter hook ingress device lo priority 0; policy accept;
                    ip saddr 10.0.0.1 drop
                }
            }";
        if run("families", "nft", &["-f", "-"], rules) {
            let ruleset = read();
            assert!(ruleset.generation.is_some());
            let verdicts = meaning(chain(table(&ruleset, "ip", "a"), "x"));
            assert_eq!(verdicts[0].1, Verdict::Jump { chain: "y".into() });
            assert_eq!(verdicts[1].1, Verdict::Goto { chain: "y".into() });
            assert_eq!(meaning(chain(table(&ruleset, "ip6", "a"), "x"))[0].1, Verdict::Accept);
            let ingress = chain(table(&ruleset, "netdev", "n"), "i");
            assert_eq!(ingress.base.as_ref().map(|base| base.hook), Some(Hook::Ingress));
            assert!(meaning(ingress)[0].0.contains(&source(&["10.0.0.1/32"], false)), "{:?}", ingress.rules);
            assert!(ruleset.tables.iter().all(|table| table.backend == Backend::Nftables));
            assert_eq!(ruleset.left_out, Vec::<String>::new());
        }
    });
}

#[test]
fn a_namespace_without_rules_has_none() {
    in_namespace("no_rules", || assert_eq!(read().tables, []));
}
