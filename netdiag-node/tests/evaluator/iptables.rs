//! Random rules written through iptables-nft and ip6tables-nft, with the `xt` matches and targets those leave to the
//! kernel's old code.

use crate::lab::{feed, nft};
use crate::random::Random;
use crate::rules::{PORTS, PROBE, V4, V6};
use crate::sets;

/// Tables and their base chains.
const CHAINS: [(&str, &[&str]); 5] = [
    ("raw", &["PREROUTING", "OUTPUT"]),
    ("mangle", &["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"]),
    ("nat", &["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"]),
    ("filter", &["INPUT", "FORWARD", "OUTPUT"]),
    ("security", &["INPUT", "FORWARD", "OUTPUT"]),
];

/// Loads random rules of both families, without those that are refused; what was loaded.
pub fn load(random: &mut Random) -> Result<String, String> {
    nft(&format!("flush ruleset\n{PROBE}"))?;
    let mut text = String::new();
    for (tool, v6) in [("iptables-nft-restore", false), ("ip6tables-nft-restore", true)] {
        text += &format!("# {tool}\n{}", restore(tool, &[], &ruleset(random, v6))?);
    }
    Ok(text)
}

pub fn restore(tool: &str, arguments: &[&str], rules: &str) -> Result<String, String> {
    const MOST: usize = 12;
    let mut lines: Vec<&str> = rules.lines().collect();
    for _ in 0..MOST {
        let text = lines.join("\n") + "\n";
        let Err(why) = feed(tool, arguments, &text) else { return Ok(text) };
        // `Error occurred at line: 7`, `line 7 failed`
        let number = why.split("line").skip(1).find_map(|rest| {
            let digits: String =
                rest.chars().skip_while(|c| matches!(c, ':' | ' ')).take_while(char::is_ascii_digit).collect();
            digits.parse::<usize>().ok()
        });
        match number {
            Some(line) if (1..=lines.len()).contains(&line) && lines[line - 1].starts_with("-A") => {
                lines.remove(line - 1);
            }
            // Legacy tables are refused as a whole.
            Some(line) if (3..=lines.len()).contains(&line) && lines[line - 2].starts_with("-A") => {
                lines.remove(line - 2);
            }
            _ => return Err(format!("{tool}: {why}\n{text}")),
        }
    }
    Err(format!("{tool} refuses more than {MOST} rules of\n{rules}"))
}

pub fn ruleset(random: &mut Random, v6: bool) -> String {
    let mut text = String::new();
    for (table, hooks) in CHAINS {
        let unusual = table == "security";
        if random.percent(if unusual { 70 } else { 20 }) {
            continue;
        }
        text += &format!("*{table}\n");
        for hook in hooks {
            let policy = if table == "filter" && random.percent(15) { "DROP" } else { "ACCEPT" };
            text += &format!(":{hook} {policy} [0:0]\n");
        }
        let own = random.below(3);
        for number in 0..own {
            text += &format!(":C{number} - [0:0]\n");
        }
        for number in 0..own {
            // Chains jump to later ones only.
            let later: Vec<String> = (number + 1..own).map(|later| format!("C{later}")).collect();
            for _ in 0..=random.below(3) {
                text += &rule(random, v6, table, &format!("C{number}"), &later);
            }
        }
        let all: Vec<String> = (0..own).map(|number| format!("C{number}")).collect();
        for hook in hooks {
            for _ in 0..random.below(4) {
                text += &rule(random, v6, table, hook, &all);
            }
        }
        text += "COMMIT\n";
    }
    text
}

fn rule(random: &mut Random, v6: bool, table: &str, chain: &str, below: &[String]) -> String {
    let protocol = random.pick(&["tcp", "tcp", "udp", ""]);
    let mut text = format!("-A {chain}");
    if !protocol.is_empty() {
        text += &format!(" -p {protocol}");
    }
    for _ in 0..random.below(3) {
        text += &format!(" {}", matches(random, v6, protocol, (table, chain)));
    }
    text + " " + &target(random, v6, table, chain, protocol, below) + "\n"
}

fn matches(random: &mut Random, v6: bool, protocol: &str, (table, chain): (&str, &str)) -> String {
    let address = if v6 { random.pick(&V6) } else { random.pick(&V4) };
    let net = if v6 { random.pick(&["fd01::/64", "fd02::/16"]) } else { random.pick(&["10.1.0.0/16", "10.2.0.0/24"]) };
    let not = random.pick(&["", "", "! "]);
    let port = random.pick_value(&PORTS);
    let with_ports = !protocol.is_empty();
    if random.percent(25) {
        return rarer_matches(random, v6, protocol, (table, chain));
    }
    if let Some(set) = random.percent(10).then(|| sets::matches(random, v6)).flatten() {
        return set;
    }
    match random.below(24) {
        0 | 1 => format!("{not}-s {address}"),
        2 | 3 => format!("{not}-d {address}"),
        4 => format!("{not}-d {net}"),
        5 if !matches!(chain, "OUTPUT" | "POSTROUTING") => {
            format!("{not}-i {}", random.pick(&["r0", "r1", "lo", "r+"]))
        }
        6 if !matches!(chain, "INPUT" | "PREROUTING") => format!("{not}-o {}", random.pick(&["r0", "r1", "lo", "r+"])),
        7 | 8 if with_ports => format!("-m {protocol} {not}--dport {port}"),
        9 if with_ports => format!("-m {protocol} {not}--dport {}:{}", port - 5, port + 200),
        10 if with_ports => format!("-m multiport {not}--dports 22,{port},8000:9000"),
        11 if with_ports => format!("-m multiport {not}--ports {port},30000"),
        12 if protocol == "tcp" => {
            format!("-m tcp {not}--tcp-flags SYN,ACK,RST {}", random.pick(&["SYN", "SYN,ACK", "NONE"]))
        }
        13 => format!(
            "-m conntrack {not}--ctstate {}",
            random.pick(&["NEW", "RELATED,ESTABLISHED", "INVALID", "NEW,UNTRACKED", "DNAT", "SNAT"])
        ),
        14 => format!("-m conntrack {not}--ctorigdst {address}"),
        15 => format!("-m conntrack --ctdir {}", random.pick(&["ORIGINAL", "REPLY"])),
        16 if with_ports => format!("-m conntrack {not}--ctorigdstport {port}"),
        17 => format!("-m mark {not}--mark {}", random.pick(&["0x1", "0x7/0xff", "0x0/0x10"])),
        18 => format!("-m connmark {not}--mark {}", random.pick(&["0x1", "0x0/0x8"])),
        19 => format!(
            "-m addrtype {not}--{}-type {}",
            random.pick(&["src", "dst"]),
            // There is no broadcast in IPv6.
            random.pick(&["LOCAL", "UNICAST", if v6 { "LOCAL,MULTICAST" } else { "LOCAL,BROADCAST" }])
        ),
        20 => format!(
            "-m statistic --mode {}",
            random.pick(&[
                "random --probability 0.5",
                "nth --every 3 --packet 0",
                "random --probability 0.33333333349"
            ])
        ),
        21 => format!("-m comment --comment \"default/web:http {port}\""),
        22 if protocol.is_empty() && !v6 => {
            format!("-p icmp -m icmp --icmp-type {}", random.pick(&["echo-request", "echo-reply", "any"]))
        }
        22 if protocol.is_empty() => {
            format!("-p icmpv6 -m icmp6 --icmpv6-type {}", random.pick(&["echo-request", "echo-reply"]))
        }
        23 => random
            .pick(&[
                "-m limit --limit 1/hour",
                "-m pkttype --pkt-type unicast",
                "-m physdev --physdev-is-bridged",
                "-m state --state NEW",
            ])
            .to_owned(),
        _ => "-m comment --comment nothing".into(),
    }
}

fn rarer_matches(random: &mut Random, v6: bool, protocol: &str, (table, chain): (&str, &str)) -> String {
    let not = random.pick(&["", "", "! "]);
    match random.below(16) {
        0 => format!("-m length {not}--length {}", random.pick(&["0:64", "60:80", "44", "100:"])),
        1 if v6 => format!("-m hl {}", random.pick(&["--hl-eq 64", "--hl-lt 3", "! --hl-eq 63", "--hl-gt 62"])),
        1 => format!("-m ttl {}", random.pick(&["--ttl-eq 64", "--ttl-lt 3", "! --ttl-eq 63", "--ttl-gt 62"])),
        2 => format!("-m dscp {not}--dscp {}", random.pick(&["0", "8", "0x2e"])),
        3 => format!("-m tos {not}--tos {}", random.pick(&["0x20/0xe0", "0xb8", "0x08/0x1e"])),
        4 if v6 => format!("-m iprange {not}--dst-range fd01::1-fd01::5"),
        4 => format!("-m iprange {not}--src-range 10.1.0.2-10.1.0.5 --dst-range 10.1.0.9-10.2.0.2"),
        5 if matches!(chain, "PREROUTING" | "INPUT" | "FORWARD") => {
            format!("-m mac {not}--mac-source {}", random.pick(&["02:00:00:00:00:09", "02:00:00:00:00:08"]))
        }
        6 if protocol == "tcp" => format!("-m tcpmss {not}--mss {}", random.pick(&["1000:1500", "1460", "9000"])),
        7 if protocol == "tcp" => format!("-m tcp {not}--tcp-option {}", random.pick(&["2", "8"])),
        8 if v6 => format!("-m u32 {not}--u32 \"{}\"", random.pick(&["6&0xFF=6", "4>>16=0:40", "40&0xFFFF=80,443"])),
        8 => format!(
            "-m u32 {not}--u32 \"{}\"",
            random.pick(&["6&0xFF=6", "0>>22&0x3C@0&0xFFFF=53,80:443", "0&0xFFFF=0x28:0x40&&16=0x0A020002", "100=0"])
        ),
        9 => format!(
            "-m string --algo {} {not}--hex-string \"|07070707|\" {}",
            random.pick(&["bm", "kmp"]),
            random.pick(&["", "--from 30", "--to 60", "--from 28 --to 35", "--icase"])
        ),
        10 | 11 if matches!(chain, "OUTPUT" | "POSTROUTING") => format!(
            "-m owner {not}{}",
            random.pick(&["--uid-owner 0", "--uid-owner 1-1000", "--gid-owner 0", "--socket-exists"])
        ),
        12 | 13 if chain == "PREROUTING" && table != "nat" => format!(
            "-m rpfilter {}",
            random.pick(&["", "--loose", "--invert", "--validmark", "--accept-local", "--loose --invert"])
        ),
        14 if !v6 => random.pick(&["-f", "! -f"]).to_owned(),
        15 => random
            .pick(&[
                "-m recent --name seen --rcheck",
                "-m recent --name seen --set",
                "-m recent --name seen ! --set",
                "-m hashlimit --hashlimit-upto 1/hour --hashlimit-name h",
            ])
            .to_owned(),
        _ => format!("-m length {not}--length 50:90"),
    }
}

fn rarer_targets(random: &mut Random, v6: bool, table: &str, chain: &str, protocol: &str) -> String {
    let destination = matches!(chain, "PREROUTING" | "OUTPUT");
    match (table, random.below(9)) {
        ("nat", 0 | 1) if chain == "PREROUTING" || chain == "OUTPUT" || chain == "POSTROUTING" => {
            let to = if v6 { "fd02::/120" } else { random.pick(&["10.2.0.0/24", "10.1.0.0/29"]) };
            format!("-j NETMAP --to {to}")
        }
        ("nat", 2) if destination => {
            let to = if v6 { "fd02::2-fd02::3" } else { "10.2.0.2-10.2.0.3" };
            format!("-j DNAT --to-destination {to}")
        }
        ("mangle", 0) if v6 => format!("-j HL --hl-{}", random.pick(&["set 9", "dec 2", "inc 200"])),
        ("mangle", 0) => format!("-j TTL --ttl-{}", random.pick(&["set 9", "dec 2", "inc 200"])),
        ("mangle", 1) => format!("-j DSCP --set-dscp {}", random.pick(&["0", "8", "0x2e"])),
        ("mangle", 2) => format!("-j TOS --set-tos {}", random.pick(&["0x20/0xe0", "0x08/0xff", "0x10/0x1e"])),
        ("mangle", 3) if !matches!(chain, "PREROUTING" | "INPUT") && !chain.starts_with('C') => {
            "-j CLASSIFY --set-class 1:10".into()
        }
        ("mangle", 4 | 5) if protocol == "tcp" => {
            format!("-m tcp --tcp-flags SYN,RST SYN -j TCPMSS --set-mss {}", random.pick(&["1000", "1460", "400"]))
        }
        ("mangle", 6) if protocol == "tcp" && matches!(chain, "FORWARD" | "OUTPUT" | "POSTROUTING") => {
            "-m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu".into()
        }
        ("raw", 0) => "-j CT --zone 5".into(),
        (_, 7) if table != "nat" => "-j NFQUEUE --queue-num 3".into(),
        (_, 7 | 8) => "-j NFLOG --nflog-group 9".into(),
        _ => String::new(),
    }
}

fn target(random: &mut Random, v6: bool, table: &str, chain: &str, protocol: &str, below: &[String]) -> String {
    if !below.is_empty() && random.percent(30) {
        let to = &below[random.below(below.len())];
        return format!("{} {to}", random.pick(&["-j", "-j", "-g"]));
    }
    let to = if v6 {
        random.pick(&["fd02::2", "fd02::3", "fd01::4"])
    } else {
        random.pick(&["10.2.0.2", "10.2.0.3", "10.1.0.4", "10.2.0.1"])
    };
    let with_port = |port: &str| if v6 { format!("[{to}]:{port}") } else { format!("{to}:{port}") };
    let destination = matches!(chain, "PREROUTING" | "OUTPUT");
    if random.percent(15) {
        return rarer_targets(random, v6, table, chain, protocol);
    }
    match (table, random.below(8)) {
        ("nat", 0 | 1) if destination => format!("-j DNAT --to-destination {to}"),
        ("nat", 2) if destination && !protocol.is_empty() => format!("-j DNAT --to-destination {}", with_port("8080")),
        ("nat", 3) if destination && !protocol.is_empty() => {
            format!("-j DNAT --to-destination {}", with_port("8000-8003"))
        }
        ("nat", 4) if destination && !protocol.is_empty() => "-j REDIRECT --to-ports 9090".into(),
        ("nat", 0 | 1) if chain == "POSTROUTING" => "-j MASQUERADE".into(),
        ("nat", 2) if chain == "POSTROUTING" => "-j MASQUERADE --random-fully".into(),
        ("nat", 3 | 4) if !destination && !chain.starts_with('C') => {
            format!("-j SNAT --to-source {}", if v6 { "fd02::100" } else { "10.2.0.100" })
        }
        ("nat", 5) if chain == "POSTROUTING" => {
            format!("-j SNAT --to-source {}", if v6 { "fd02::100-fd02::103" } else { "10.2.0.100-10.2.0.103" })
        }
        ("mangle" | "raw" | "nat", 6) => format!(
            "-j MARK --set-xmark {}",
            random.pick(&["0x1/0xffffffff", "0x7/0xffffffff", "0x10/0x10", "0x0/0x7"])
        ),
        ("mangle", 5) => {
            format!("-j CONNMARK {}", random.pick(&["--save-mark", "--restore-mark", "--set-mark 0x8/0x8"]))
        }
        ("raw", 0 | 1) => "-j CT --notrack".into(),
        ("filter", 0) if !chain.starts_with('C') => "-j REJECT".into(),
        ("filter", 1) if protocol == "tcp" && !chain.starts_with('C') => "-j REJECT --reject-with tcp-reset".into(),
        (_, 2) if table != "nat" => "-j DROP".into(),
        (_, 3) => "-j RETURN".into(),
        (_, 4 | 5) => "-j ACCEPT".into(),
        _ => String::new(),
    }
}
