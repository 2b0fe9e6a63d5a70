//! Rules written with `iptables` and `ip6tables`, in both variants.

use netdiag_common::observation::Protocol;
use netdiag_common::observation::rules::{Backend, Hook, Match, NatTarget, Ruleset, Verdict};

use crate::sandbox::{
    chain, destination, destination_ports, in_namespace, meaning, protocol, read, run, source, states, table, texts,
};

const IPV4: &str = "*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:MINE - [0:0]
-A INPUT -s 10.0.0.0/8 ! -d 192.0.2.1/32 -i eth+ -p tcp -m tcp --dport 80:90 -m comment --comment \"no web\" -j DROP
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p udp -m multiport --dports 53,5353 -j MINE
-A INPUT -m addrtype --dst-type LOCAL -j RETURN
-A INPUT -m iprange --src-range 10.0.0.4-10.0.0.7 -j REJECT --reject-with icmp-admin-prohibited
-A INPUT -m mark --mark 0x4000/0x4000 -j LOG --log-prefix \"marked \"
-A INPUT -m limit --limit 5/min -j ACCEPT
-A INPUT -p icmp -m icmp --icmp-type 8 -j ACCEPT
-A INPUT -g MINE
-A MINE -p tcp -m tcp ! --sport 1024:65535 --tcp-flags SYN,ACK SYN -j REJECT --reject-with tcp-reset
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A PREROUTING -d 10.96.0.1/32 -p tcp -m tcp --dport 443 -m statistic --mode random --probability 0.5 -j DNAT --to-destination 10.244.1.2:6443
-A POSTROUTING -s 10.244.0.0/16 -j SNAT --to-source 192.0.2.9
-A POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE --random-fully
COMMIT
";

const IPV6: &str = "*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A FORWARD -s fd00::/64 -p tcp -m tcp --dport 443 -j REJECT --reject-with icmp6-adm-prohibited
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A PREROUTING -d fd00:96::1/128 -p tcp -m tcp --dport 443 -j DNAT --to-destination [fd00:244::2]:6443
COMMIT
";

/// Rules of the table mangle, as `iptables -S` prints them.
const RARER: [&str; 27] = [
    "-A PREROUTING -p tcp -m rpfilter --loose --validmark --invert -j DROP",
    "-A PREROUTING -p tcp -m mac ! --mac-source 02:00:00:00:00:09 -j DROP",
    "-A PREROUTING -p tcp -m pkttype ! --pkt-type broadcast -j DROP",
    "-A PREROUTING -p tcp -m physdev --physdev-in veth+ ! --physdev-is-bridged -j DROP",
    "-A PREROUTING -p tcp -j TPROXY --on-port 9000 --on-ip 127.0.0.1 --tproxy-mark 0x1/0x3",
    "-A PREROUTING -p tcp -m socket --transparent --nowildcard --restore-skmark -j DROP",
    "-A PREROUTING -p tcp -m socket -j DROP",
    "-A OUTPUT -p tcp -m recent --set --name netdiag --mask 255.255.255.255 --rsource -j DROP",
    "-A OUTPUT -p tcp -m recent ! --update --seconds 60 --reap --hitcount 4 --rttl --name netdiag --mask 255.255.255.255 --rdest -j DROP",
    "-A OUTPUT -p tcp -m recent --rcheck --seconds 30 --name netdiag --mask 255.255.255.0 --rsource -j DROP",
    "-A OUTPUT -p tcp -m recent --remove --name netdiag --mask 255.255.255.255 --rsource -j DROP",
    "-A OUTPUT -p tcp -m owner --uid-owner 1000-1001 ! --gid-owner 7 -j DROP",
    "-A OUTPUT -p tcp -m owner ! --socket-exists -j DROP",
    "-A OUTPUT -p tcp -m length --length 60:80 -j DROP",
    "-A OUTPUT -p tcp -m length ! --length 44 -j DROP",
    "-A OUTPUT -p tcp -m tcpmss --mss 1000:1500 -j DROP",
    "-A OUTPUT -p tcp -m ttl ! --ttl-eq 63 -j DROP",
    "-A OUTPUT -p tcp -m ttl --ttl-lt 3 -j DROP",
    "-A OUTPUT -p tcp -m dscp --dscp 0x08 -j DROP",
    "-A OUTPUT -p tcp -m tos --tos 0x20/0xe0 -j DROP",
    r#"-A OUTPUT -p tcp -m string --string "a b" --algo bm --from 30 --to 60 -j DROP"#,
    r#"-A OUTPUT -p tcp -m string ! --hex-string "|07070707|" --algo kmp --icase -j DROP"#,
    "-A OUTPUT -p tcp -m hashlimit --hashlimit-above 5/min --hashlimit-burst 7 --hashlimit-mode srcip,dstport --hashlimit-name netdiag -j DROP",
    "-A OUTPUT -p tcp -j CONNMARK --save-mark --nfmask 0xff --ctmask 0xff",
    "-A OUTPUT -p tcp -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff",
    "-A OUTPUT -p tcp -j CONNMARK --set-xmark 0x8/0x8",
    "-A OUTPUT -p tcp -j TTL --ttl-dec 2",
];

/// The same of the table nat.
const RARER_TRANSLATIONS: [&str; 3] = [
    "-A PREROUTING -p tcp -j REDIRECT --to-ports 9000-9010 --random",
    "-A PREROUTING -p tcp -j REDIRECT --to-ports 9090",
    "-A PREROUTING -p tcp -j NETMAP --to 10.2.0.0/24",
];

/// The same file must read the same, whichever way the kernel keeps it.
fn check(ruleset: &Ruleset, backend: Backend) {
    assert_eq!(ruleset.left_out, Vec::<String>::new());
    assert!(ruleset.tables.iter().all(|table| table.backend == backend), "{ruleset:?}");
    check_filter(ruleset);
    check_nat(ruleset);
}

fn check_filter(ruleset: &Ruleset) {
    let filter = table(ruleset, "ip", "filter");
    let forward = chain(filter, "FORWARD").base.clone().unwrap();
    assert_eq!((forward.hook, forward.priority, forward.policy), (Hook::Forward, 0, Verdict::Drop));
    let input = chain(filter, "INPUT");
    let found = meaning(input);
    let eth = Match::InputInterface { names: vec!["eth*".into()], negated: false };
    let mut first = found[0].0.clone();
    for wanted in [
        source(&["10.0.0.0/8"], false),
        destination(&["192.0.2.1/32"], true),
        eth,
        protocol(Protocol::Tcp),
        destination_ports(&[(80, 90)], false),
    ] {
        let at =
            first.iter().position(|found| *found == wanted).unwrap_or_else(|| panic!("no {wanted:?} in {first:?}"));
        first.remove(at);
    }
    assert_eq!(first, []);
    assert_eq!(found[0].1, Verdict::Drop);
    assert_eq!(input.rules[0].comment.as_deref(), Some("no web"));
    assert!(input.rules[0].counter.is_some());
    let text = texts(input)[0];
    for words in ["-A INPUT ", "-s 10.0.0.0/8 ! -d 192.0.2.1", "--dport 80:90", "--comment \"no web\"", "-j DROP"] {
        assert!(text.contains(words), "{text} has no {words}");
    }
    let Match::ConntrackState { states: found_states, negated: false } = &found[1].0[0] else {
        panic!("{:?}", found[1])
    };
    let mut sorted: Vec<_> = found_states.iter().map(String::as_str).collect();
    sorted.sort_unstable();
    assert_eq!(states(&sorted, false), states(&["established", "related"], false));
    assert!(found[2].0.contains(&destination_ports(&[(53, 53), (5353, 5353)], false)), "{:?}", found[2]);
    assert_eq!(found[2].1, Verdict::Jump { chain: "MINE".into() });
    assert!(matches!(&found[3], (matches, Verdict::Return) if matches!(matches[..], [Match::Other { .. }])));
    assert_eq!(
        found[4],
        (vec![source(&["10.0.0.4/30"], false)], Verdict::Reject { with: "icmp admin-prohibited".into() })
    );
    assert_eq!(found[5].1, Verdict::Continue);
    assert!(texts(input)[5].contains("--mark 0x4000/0x4000"), "{}", texts(input)[5]);
    assert!(matches!(found[6].0[..], [Match::Other { .. }]));
    assert!(found[7].0.iter().any(|found| matches!(found, Match::Other { .. })), "{:?}", found[7]);
    assert_eq!(found[8].1, Verdict::Goto { chain: "MINE".into() });
    let mine = meaning(chain(filter, "MINE"));
    assert_eq!(mine[0].1, Verdict::Reject { with: "tcp reset".into() });
    assert!(mine[0].0.iter().any(|found| matches!(found, Match::SourcePort { negated: true, .. })), "{:?}", mine[0]);
}

fn check_nat(ruleset: &Ruleset) {
    let nat = table(ruleset, "ip", "nat");
    let dnat = &meaning(chain(nat, "PREROUTING"))[0];
    let to = |address: &str, port| NatTarget { address: Some(address.parse().unwrap()), port };
    assert_eq!(dnat.1, Verdict::Dnat { to: vec![to("10.244.1.2", Some(6443))] });
    assert!(dnat.0.contains(&destination_ports(&[(443, 443)], false)), "{dnat:?}");
    let post = meaning(chain(nat, "POSTROUTING"));
    assert_eq!(post[0].1, Verdict::Snat { to: vec![to("192.0.2.9", None)] });
    assert_eq!(post[1].1, Verdict::Masquerade);
    let six = meaning(chain(table(ruleset, "ip6", "filter"), "FORWARD"));
    assert_eq!(six[0].1, Verdict::Reject { with: "icmpv6 admin-prohibited".into() });
    assert!(six[0].0.contains(&source(&["fd00::/64"], false)), "{six:?}");
    let six = meaning(chain(table(ruleset, "ip6", "nat"), "PREROUTING"));
    assert_eq!(six[0].1, Verdict::Dnat { to: vec![to("fd00:244::2", Some(6443))] });
}

#[test]
fn rules_of_iptables_nft_are_read() {
    in_namespace("iptables_nft", || {
        if run("iptables_nft", "iptables-nft-restore", &[], IPV4)
            && run("iptables_nft", "ip6tables-nft-restore", &[], IPV6)
        {
            check(&read(), Backend::IptablesNft);
        }
    });
}

#[test]
fn rules_of_legacy_iptables_are_read() {
    in_namespace("iptables_legacy", || {
        if run("iptables_legacy", "iptables-legacy-restore", &[], IPV4)
            && run("iptables_legacy", "ip6tables-legacy-restore", &[], IPV6)
        {
            check(&read(), Backend::IptablesLegacy);
        }
    });
}

#[test]
fn rarer_matches_and_targets_are_told_as_iptables_prints_them() {
    for tool in ["iptables-nft-restore", "iptables-legacy-restore"] {
        in_namespace("rarer_matches", move || {
            let rules =
                format!("*mangle\n{}\nCOMMIT\n*nat\n{}\nCOMMIT\n", RARER.join("\n"), RARER_TRANSLATIONS.join("\n"));
            if !run("rarer_matches", tool, &[], &rules) {
                return;
            }
            let ruleset = read();
            let (mangle, nat) = (table(&ruleset, "ip", "mangle"), table(&ruleset, "ip", "nat"));
            let chains = [chain(mangle, "PREROUTING"), chain(mangle, "OUTPUT"), chain(nat, "PREROUTING")];
            let told: Vec<&str> = chains.into_iter().flat_map(texts).collect();
            assert_eq!(told.len(), RARER.len() + RARER_TRANSLATIONS.len());
            for (text, rule) in told.into_iter().zip(RARER.into_iter().chain(RARER_TRANSLATIONS)) {
                let words = rule.split_once(" -p tcp ").unwrap().1;
                let words = words.strip_suffix(" -j DROP").unwrap_or(words);
                assert!(text.contains(words), "{text} has no {words}");
            }
        });
    }
}

#[test]
fn reading_creates_no_legacy_table() {
    in_namespace("no_legacy_table", || {
        assert_eq!(read().tables, []);
        let names = std::process::Command::new("cat").arg("/proc/thread-self/net/ip_tables_names").output().unwrap();
        assert_eq!(String::from_utf8_lossy(&names.stdout), "");
    });
}
