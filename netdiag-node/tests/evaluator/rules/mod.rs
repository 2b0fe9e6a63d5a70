//! Random rulesets, as nft takes them.

mod rule;

use crate::lab::nft_without_refused;
use crate::random::Random;

/// IPv4 and IPv6 addresses that packets of this test have, and some that they do not.
pub const V4: [&str; 12] = [
    "10.1.0.1",
    "10.1.0.2",
    "10.1.0.3",
    "10.1.0.9",
    "10.2.0.1",
    "10.2.0.2",
    "10.2.0.3",
    "10.2.0.5",
    "10.2.0.9",
    "10.9.0.1",
    "192.0.2.1",
    "127.0.0.1",
];
pub const V6: [&str; 7] = ["fd01::1", "fd01::2", "fd01::9", "fd02::1", "fd02::2", "fd02::9", "2001:db8::1"];
const V4_NETS: [&str; 5] = ["10.1.0.0/16", "10.2.0.0/24", "10.0.0.0/8", "10.2.0.0/30", "127.0.0.0/8"];
const V6_NETS: [&str; 3] = ["fd01::/64", "fd02::/64", "fd00::/8"];
pub const PORTS: [u16; 6] = [22, 53, 80, 443, 8080, 30000];

/// Where addresses are translated to: hosts that answer, so that packets leave.
const V4_TARGETS: [&str; 6] = ["10.2.0.2", "10.2.0.3", "10.1.0.4", "10.2.0.1", "10.2.0.254", "10.1.0.1"];
const V6_TARGETS: [&str; 3] = ["fd02::2", "fd02::3", "fd01::4"];
const V4_SOURCES: [&str; 4] = ["10.2.0.100", "10.2.0.1", "10.1.0.1", "10.3.0.1"];

/// One table while it is written.
struct Table<'r> {
    random: &'r mut Random,
    family: &'static str,
    /// Chains that rules of the chain being written may jump to.
    below: Vec<String>,
    hook: &'static str,
    nat: bool,
    /// Runs before connections are looked up.
    early: bool,
}

/// Loads random rules, without those that are refused; what was loaded.
pub fn load(random: &mut Random) -> Result<String, String> {
    nft_without_refused(&format!("flush ruleset\n{}", ruleset(random)))
}

/// A ruleset, with the chains that mark packets for tracing.
fn ruleset(random: &mut Random) -> String {
    let mut text = String::from(PROBE);
    for number in 0..=random.below(3) {
        let family = random.pick(&["inet", "inet", "ip", "ip", "ip6"]);
        let family = ["inet", "ip", "ip6"].into_iter().find(|known| *known == family).unwrap();
        let mut table = Table { random, family, below: Vec::new(), hook: "", nat: false, early: false };
        text += &table.write(number);
    }
    text
}

/// The packets of this test are traced from here on; the last one ends here.
pub const PROBE: &str = "
table inet probe {
    chain before { type filter hook prerouting priority -500;
        ip id 0x4e45 udp dport 9 meta nftrace set 1 drop
        ip id 0x4e44 meta nftrace set 1
        ip6 flowlabel 0x04e44 meta nftrace set 1
    }
    chain own { type filter hook output priority -500;
        ip id 0x4e44 meta nftrace set 1
        ip6 flowlabel 0x04e44 meta nftrace set 1
    }
}
";

impl Table<'_> {
    fn write(&mut self, number: usize) -> String {
        let sets = self.sets();
        let mut text = format!("table {} t{number} {{\n{sets}", self.family);
        let chains = self.random.below(4);
        // From the last to the first, since each jumps only to those behind it: nft knows no loops.
        let mut written = Vec::new();
        for chain in (0..chains).rev() {
            (self.hook, self.nat, self.early) = ("", false, false);
            let rules = self.rules(4);
            written.push(format!("  chain c{chain} {{\n{rules}  }}\n"));
            self.below.push(format!("c{chain}"));
        }
        for chain in 0..=self.random.below(4) {
            written.push(self.base_chain(chain));
        }
        // Chains have to be there before rules jump to them, and they were written in that order.
        text += &written.concat();
        text + "}\n"
    }

    fn base_chain(&mut self, number: usize) -> String {
        let hooks = ["prerouting", "input", "forward", "output", "postrouting"];
        let hook = hooks[self.random.below(hooks.len())];
        let nat = self.random.percent(45) && hook != "forward";
        let priority = if nat {
            let base: i32 = if matches!(hook, "prerouting" | "output") { -100 } else { 100 };
            base + self.random.pick_value(&[0, 0, -10, 10, 150])
        } else {
            self.random.pick_value(&[-400, -300, -190, -150, -99, -1, 0, 0, 0, 10, 50, 99, 101, 300])
        };
        let kind = match (nat, hook) {
            (true, _) => "nat",
            (false, "output") if self.random.percent(30) => "route",
            _ => "filter",
        };
        (self.hook, self.nat, self.early) =
            (hook, nat, !nat && priority < -200 && matches!(hook, "prerouting" | "output"));
        let policy = if !nat && self.random.percent(15) { "drop" } else { "accept" };
        let rules = self.rules(5);
        format!("  chain b{number} {{ type {kind} hook {hook} priority {priority}; policy {policy};\n{rules}  }}\n")
    }

    fn is_v6(&self) -> bool {
        self.family == "ip6"
    }

    fn sets(&mut self) -> String {
        let (kind, addresses, nets) = addresses(self.is_v6());
        let some = |random: &mut Random, from: &[&str], count: usize| {
            let mut chosen: Vec<String> = from.iter().map(|text| (*text).to_owned()).collect();
            while chosen.len() > count {
                let at = random.below(chosen.len());
                chosen.remove(at);
            }
            chosen
        };
        let hosts = some(self.random, addresses, 4).join(", ");
        let ranges = some(self.random, &nets[..2], 2).join(", ");
        let ports = || PORTS.iter().map(ToString::to_string).collect::<Vec<_>>();
        let pairs: Vec<String> = some(self.random, addresses, 3)
            .into_iter()
            .zip(ports())
            .map(|(address, port)| format!("{address} . {port}"))
            .collect();
        let (first, second) = (nets[0], addresses[4]);
        let target =
            |random: &mut Random| if kind == "ipv4_addr" { random.pick(&V4_TARGETS) } else { random.pick(&V6_TARGETS) };
        let (to, other) = (target(self.random), target(self.random));
        let catch_all = if self.random.percent(30) { ", * : continue" } else { "" };
        format!(
            "  set hosts {{ type {kind}; elements = {{ {hosts} }}; }}
  set nets {{ type {kind}; flags interval; elements = {{ {ranges} }}; }}
  set pairs {{ type {kind} . inet_service; elements = {{ {pairs} }}; }}
  set boxes {{ type {kind} . inet_service; flags interval; elements = {{ {first} . 50-100, {second} . 400-9000 }}; }}
  set ports {{ type inet_service; flags interval; elements = {{ 20-60, 443, 8000-9000 }}; }}
  set seen {{ type {kind}; size 1000; flags dynamic,timeout; timeout 1h; }}
  map marks {{ type inet_service : mark; elements = {{ 22 : 0x1, 80 : 0x7, 443 : 0x100 }}; }}
  map services {{ type {kind} . inet_proto . inet_service : verdict; elements = {{ {second} . tcp . 80 : accept, {second} . udp . 53 : drop }}; }}
  map verdicts {{ type inet_service : verdict; flags interval; elements = {{ 0-99 : continue, 443 : return, 8000-9000 : accept{catch_all} }}; }}
  map targets {{ type inet_service : {kind} . inet_service; elements = {{ 80 : {to} . 8080, 53 : {other} . 53 }}; }}
  counter total {{ }}
",
            pairs = pairs.join(", "),
        )
    }
}

/// The type of a set, hosts and networks.
fn addresses(v6: bool) -> (&'static str, &'static [&'static str], &'static [&'static str]) {
    if v6 { ("ipv6_addr", &V6, &V6_NETS) } else { ("ipv4_addr", &V4, &V4_NETS) }
}
