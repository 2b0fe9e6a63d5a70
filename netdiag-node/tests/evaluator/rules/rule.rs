//! One random rule: what it asks, what it does beside deciding, and what it decides.

use super::{PORTS, Table, V4_SOURCES, V4_TARGETS, V6_TARGETS, addresses};

impl Table<'_> {
    pub(super) fn rules(&mut self, limit: usize) -> String {
        let mut text = String::new();
        for _ in 0..=self.random.below(limit) {
            text += &format!("    {}\n", self.rule());
        }
        text
    }

    fn rule(&mut self) -> String {
        // One network protocol in a rule.
        let v6 = self.is_v6() || (self.family == "inet" && self.random.percent(30));
        // One transport protocol as well.
        let transport = self.random.pick(&["tcp", "tcp", "udp", "th"]);
        let mut parts: Vec<String> = Vec::new();
        for _ in 0..self.random.below(3) {
            parts.push(self.matches(v6, transport));
        }
        if self.random.percent(40) {
            parts.push(self.statement(v6, transport));
        }
        parts.push(self.verdict(v6, transport));
        parts.join(" ")
    }

    fn matches(&mut self, v6: bool, transport: &str) -> String {
        let (_, addresses, nets) = addresses(v6);
        let ip = if v6 { "ip6" } else { "ip" };
        let not = self.random.pick(&["", "", "", "!= "]);
        let side = self.random.pick(&["saddr", "daddr"]);
        let (address, net) = (self.random.pick(addresses), self.random.pick(nets));
        let port = self.random.pick_value(&PORTS);
        let end = self.random.pick(&["sport", "dport", "dport", "dport"]);
        // Named sets hold addresses of the table's own protocol.
        let named = v6 == self.is_v6();
        let header = if transport == "th" { "meta l4proto { tcp, udp } th" } else { transport };
        match self.random.below(44) {
            0 | 1 => format!("{ip} {side} {not}{address}"),
            2 => format!("{ip} {side} {not}{net}"),
            3 => format!(
                "{ip} {side} {not}{{ {address}, {} }}",
                if v6 { "fd02::100-fd02::1ff" } else { "10.4.0.0-10.4.0.9" }
            ),
            4 if named => format!("{ip} {side} {not}@hosts"),
            5 if named => format!("{ip} {side} {not}@nets"),
            6 if named => format!("{ip} {side} . {header_pair} {not}@pairs", header_pair = pair(transport, end)),
            7 if named => format!("{ip} {side} . {} {not}@boxes", pair(transport, end)),
            4..=7 => format!("{ip} {side} {net}"),
            8 | 9 => format!("{header} {end} {not}{port}"),
            10 => format!("{header} {end} {not}{}-{}", port - 5, port + 100),
            11 => format!("{header} {end} {not}{{ {port}, 1000-40000 }}"),
            12 => format!("{header} {end} {not}@ports"),
            13 => format!("{header} {end} {} {port}", self.random.pick(&["<", ">", "<=", ">="])),
            14 => format!("meta l4proto {not}{{ tcp, udp }}"),
            15 => {
                format!("meta l4proto {not}{}", self.random.pick(&["tcp", "udp", if v6 { "icmpv6" } else { "icmp" }]))
            }
            16 => format!("meta mark {not}{}", self.random.pick(&["0x0", "0x1", "0x7", "0x10", "0x100"])),
            17 => format!(
                "meta mark & {} {} 0x0",
                self.random.pick(&["0x1", "0x10", "0xff00"]),
                self.random.pick(&["==", "!="])
            ),
            18 => format!(
                "iifname {not}{}",
                self.random.pick(&["\"r0\"", "\"r1\"", "\"lo\"", "\"r*\"", "{ \"r0\", \"lo\" }"])
            ),
            19 => format!(
                "oifname {not}{}",
                self.random.pick(&["\"r0\"", "\"r1\"", "\"lo\"", "\"r*\"", "{ \"r1\", \"x9\" }"])
            ),
            20 => format!("iif {not}{}", self.random.pick(&["r0", "lo"])),
            21 => format!(
                "meta {} {not}{}",
                self.random.pick(&["iifkind", "oifkind"]),
                self.random.pick(&["\"veth\"", "\"dummy\""])
            ),
            22 => format!("meta {} {not}0", self.random.pick(&["iifgroup", "oifgroup"])),
            23 => format!(
                "ct state {}",
                self.random.pick(&[
                    "new",
                    "established,related",
                    "invalid",
                    "!= new",
                    "new,invalid",
                    "untracked",
                    "{ new, established }"
                ])
            ),
            24 => format!("ct direction {not}{}", self.random.pick(&["original", "reply"])),
            25 => format!("ct status {}", self.random.pick(&["dnat", "snat", "seen-reply", "confirmed", "dnat,snat"])),
            26 => format!("ct mark {not}{}", self.random.pick(&["0x0", "0x1", "0x7"])),
            27 => format!("ct original {ip} {side} {not}{address}"),
            28 => format!("ct reply {ip} {side} {not}{address}"),
            29 => format!("{header} {end} {port} ct original proto-dst {not}{}", self.random.pick_value(&PORTS)),
            30 if !v6 => {
                format!("ip ttl {} {}", self.random.pick(&["<", ">", "==", "!="]), self.random.pick(&["2", "63", "64"]))
            }
            31 if !v6 => format!("ip dscp {not}{}", self.random.pick(&["cs0", "cs1", "ef"])),
            30 => format!(
                "ip6 hoplimit {} {}",
                self.random.pick(&["<", ">", "==", "!="]),
                self.random.pick(&["2", "63", "64"])
            ),
            31 => format!("ip6 dscp {not}{}", self.random.pick(&["cs0", "cs1", "ef"])),
            32 => format!("meta length {} {}", self.random.pick(&["<", ">"]), self.random.pick(&["50", "60", "100"])),
            33 if !v6 => format!("icmp type {not}{}", self.random.pick(&["echo-request", "echo-reply"])),
            33 => format!("icmpv6 type {not}{}", self.random.pick(&["echo-request", "echo-reply"])),
            34 => format!(
                "tcp flags {}",
                self.random.pick(&["syn", "syn / syn,ack", "& (fin | syn) == syn", "{ syn, ack }", "!= syn / syn,rst"])
            ),
            35 => format!("fib {side} type {not}{}", self.random.pick(&["local", "unicast", "{ local, broadcast }"])),
            36 if matches!(self.hook, "prerouting" | "input" | "forward") => {
                format!("fib saddr . iif oif {}", self.random.pick(&["0", "!= 0", "\"r0\"", "missing", "exists"]))
            }
            36 if self.hook == "prerouting" => format!("fib daddr oifname {not}\"r1\""),
            37 => format!(
                "numgen {} mod {} {}",
                self.random.pick(&["random", "inc"]),
                self.random.pick(&["2", "3"]),
                self.random.pick(&["0", "1", "!= 1", "< 2"])
            ),
            38 => format!(
                "jhash {ip} saddr . {} mod {} seed 0x{port:x} {not}{}",
                pair(transport, "sport"),
                self.random.pick(&["2", "4"]),
                self.random.pick(&["0", "1"])
            ),
            39 => {
                self.random.pick(&["limit rate 100/second", "limit rate over 1/hour", "quota 10000 bytes"]).to_owned()
            }
            40 => format!("meta pkttype {not}{}", self.random.pick(&["host", "broadcast", "unicast"])),
            41 => format!("@th,0,16 & 0xfff0 {} 0x{:x}", self.random.pick(&["==", "!="]), 0x4e20),
            42 => {
                format!("tcp option maxseg {}", self.random.pick(&["exists", "missing", "size 1-1400", "size > 1400"]))
            }
            43 if self.hook == "output" => format!("meta {} {not}0", self.random.pick(&["skuid", "skgid"])),
            _ if self.family == "inet" => format!("meta nfproto {not}{}", if v6 { "ipv6" } else { "ipv4" }),
            _ => format!("meta protocol {not}{ip}"),
        }
    }

    fn statement(&mut self, v6: bool, transport: &str) -> String {
        let ip = if v6 { "ip6" } else { "ip" };
        let header = if transport == "th" { "meta l4proto { tcp, udp } th" } else { transport };
        let named = v6 == self.is_v6();
        match self.random.below(18) {
            0 => "counter".into(),
            1 => "counter name \"total\"".into(),
            2 | 3 => format!("meta mark set {}", self.random.pick(&["0x1", "0x7", "0x10", "0x0"])),
            4 => format!("meta mark set meta mark | {}", self.random.pick(&["0x10", "0x100"])),
            5 => format!("meta mark set meta mark & 0xff ^ {}", self.random.pick(&["0x3", "0x7"])),
            6 => "ct mark set meta mark".into(),
            7 => "meta mark set ct mark".into(),
            8 => format!("ct mark set {}", self.random.pick(&["0x1", "0x7", "ct mark | 0x8"])),
            9 => format!("{header} dport {{ 22, 80, 443 }} meta mark set {} dport map @marks", th(transport)),
            10 => format!(
                "meta mark set {ip} saddr map {{ {} }}",
                if v6 { "fd01::2 : 0x1, fd02::2 : 0x7" } else { "10.1.0.2 : 0x1, 10.2.0.2 : 0x7, 10.1.0.3 : 0x20" }
            ),
            11 if self.early => "notrack".into(),
            12 if self.early => "ct zone set 5".into(),
            13 if named => format!("add @seen {{ {ip} saddr }}"),
            14 if named => format!("{ip} saddr @seen"),
            15 => format!("{ip} dscp set {}", self.random.pick(&["cs0", "cs1", "ef"])),
            16 if named => format!("update @seen {{ {ip} daddr limit rate 100/second }}"),
            _ => "counter".into(),
        }
    }

    fn verdict(&mut self, v6: bool, transport: &str) -> String {
        if self.nat && self.random.percent(65) {
            return self.translation(v6, transport);
        }
        let ip = if v6 { "ip6" } else { "ip" };
        let header = if transport == "th" { "meta l4proto { tcp, udp } th" } else { transport };
        let named = v6 == self.is_v6();
        let below =
            if self.below.is_empty() { None } else { Some(self.below[self.random.below(self.below.len())].clone()) };
        match (self.random.below(20), below) {
            (0..=3, Some(chain)) => format!("jump {chain}"),
            (4, Some(chain)) => format!("goto {chain}"),
            (5, Some(chain)) => {
                format!("{header} dport vmap {{ 22 : drop, 53 : accept, 80 : jump {chain}, 8000-9000 : goto {chain} }}")
            }
            (6, Some(chain)) => format!("numgen random mod 3 vmap {{ 0 : jump {chain}, 1 : continue, 2 : accept }}"),
            (7, Some(chain)) => format!("meta l4proto vmap {{ tcp : jump {chain}, udp : continue }}"),
            (8, _) => "ct state vmap { established : accept, invalid : drop, new : continue }".into(),
            (9, _) if named => format!(
                "{ip} daddr . meta l4proto . {} vmap @services",
                pair(if transport == "th" { "tcp" } else { transport }, "dport")
            ),
            (10, _) => format!("{header} dport vmap @verdicts"),
            (11, _) if self.random.percent(60) => "drop".into(),
            (12, _) if !self.nat && matches!(self.hook, "input" | "forward" | "output") && self.random.percent(50) => {
                let how = match (self.family, v6) {
                    ("inet", _) => self.random.pick(&["reject", "reject with icmpx admin-prohibited"]),
                    (_, false) => self.random.pick(&["reject", "reject with icmp host-unreachable"]),
                    (_, true) => self.random.pick(&["reject", "reject with icmpv6 no-route"]),
                };
                if self.random.percent(30) { "meta l4proto tcp reject with tcp reset".into() } else { how.to_owned() }
            }
            (13 | 14, _) => "accept".into(),
            (15, _) => "return".into(),
            _ => "counter".into(),
        }
    }

    fn translation(&mut self, v6: bool, transport: &str) -> String {
        let destination = matches!(self.hook, "prerouting" | "output");
        let header = if transport == "th" { "meta l4proto { tcp, udp } th" } else { transport };
        let ip = if v6 { "ip6" } else { "ip" };
        // In a table of both families the rule has to say which one it is about.
        let only = if self.family == "inet" {
            format!("meta nfproto {} ", if v6 { "ipv6" } else { "ipv4" })
        } else {
            String::new()
        };
        let to = if v6 { self.random.pick(&V6_TARGETS) } else { self.random.pick(&V4_TARGETS) };
        let source = if v6 { "fd02::100" } else { self.random.pick(&V4_SOURCES) };
        let family = if self.family == "inet" { format!("{ip} ") } else { String::new() };
        let with_port =
            |address: &str, port: &str| if v6 { format!("[{address}]:{port}") } else { format!("{address}:{port}") };
        let named = v6 == self.is_v6();
        let ports = format!("{header} dport {{ 22, 80, 53, 443, 8080 }}");
        match (destination, self.random.below(9)) {
            (true, 0 | 1) => format!("{only}dnat {family}to {to}"),
            (true, 2 | 3) => format!("{only}{ports} dnat {family}to {}", with_port(to, "8080")),
            (true, 4) => format!("{only}{ports} dnat {family}to {}", with_port(to, "8000-8003")),
            (true, 5) => {
                let other = if v6 { "fd02::9" } else { "10.2.0.9" };
                format!("{only}dnat {family}to numgen random mod 2 map {{ 0 : {to}, 1 : {other} }}")
            }
            (true, 6) if named => {
                format!("{only}{header} dport {{ 53, 80 }} dnat {ip} to {} dport map @targets", th(transport))
            }
            (true, 7) => format!("{only}{ports} redirect to :{}", self.random.pick(&["8080", "9090"])),
            (true, _) => format!("{only}redirect"),
            (false, 0 | 1) => format!("{only}snat {family}to {source}"),
            (false, 2) => format!("{only}{ports} snat {family}to {}", with_port(source, "7000")),
            (false, 3) => {
                format!("{only}snat {family}to {}", if v6 { "fd02::100-fd02::103" } else { "10.2.0.100-10.2.0.103" })
            }
            (false, 4) => format!(
                "{only}snat {family}to {} persistent",
                if v6 { "fd02::100-fd02::103" } else { "10.2.0.100-10.2.0.103" }
            ),
            (false, _) if self.hook == "postrouting" => {
                format!("{only}masquerade{}", self.random.pick(&["", "", "", " random", " persistent"]))
            }
            (false, _) => format!("{only}snat {family}to {source}"),
        }
    }
}

fn th(transport: &str) -> &str {
    transport
}

/// A port for a concatenation.
fn pair(transport: &str, end: &str) -> String {
    format!("{} {end}", if transport == "th" { "tcp" } else { transport })
}
