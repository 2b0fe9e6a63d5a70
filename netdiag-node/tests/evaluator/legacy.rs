//! Random rules written through iptables-legacy and ip6tables-legacy, beside chains of nf_tables.

use crate::iptables::{restore, ruleset};
use crate::lab::{feed, nft};
use crate::nflog::Log;
use crate::random::Random;
use crate::rules::PROBE;

pub const IPTABLES: &str = "iptables-legacy-restore";
pub const IP6TABLES: &str = "ip6tables-legacy-restore";

/// Waits for whoever else on this machine writes legacy rules, in seconds.
pub const PATIENT: [&str; 2] = ["-w", "20"];

/// All tables without rules.
const EMPTY: &str = "*raw
:PREROUTING ACCEPT
:OUTPUT ACCEPT
COMMIT
*mangle
:PREROUTING ACCEPT
:INPUT ACCEPT
:FORWARD ACCEPT
:OUTPUT ACCEPT
:POSTROUTING ACCEPT
COMMIT
*nat
:PREROUTING ACCEPT
:INPUT ACCEPT
:OUTPUT ACCEPT
:POSTROUTING ACCEPT
COMMIT
*filter
:INPUT ACCEPT
:FORWARD ACCEPT
:OUTPUT ACCEPT
COMMIT
*security
:INPUT ACCEPT
:FORWARD ACCEPT
:OUTPUT ACCEPT
COMMIT
";

/// Why there can be no legacy rules here, or what tells how they are taken.
pub fn prepare() -> Result<Log, String> {
    let test = "*filter\n:INPUT ACCEPT\nCOMMIT\n";
    for tool in [IPTABLES, IP6TABLES] {
        feed(tool, &PATIENT, test).map_err(|why| format!("{tool}: {}", why.trim()))?;
    }
    Log::open()
}

/// Removes all rules, as far as there are tables; a table stays once it has been used.
pub fn clear() -> Result<(), String> {
    feed(IPTABLES, &PATIENT, EMPTY)?;
    feed(IP6TABLES, &PATIENT, EMPTY)
}

/// Loads random rules of both families, without those that are refused; what was loaded.
pub fn load(random: &mut Random) -> Result<String, String> {
    let native = native(random);
    nft(&format!("flush ruleset\n{PROBE}{native}"))?;
    clear()?;
    let mut text = native;
    for (tool, v6) in [(IPTABLES, false), (IP6TABLES, true)] {
        text += &format!("# {tool}\n{}", restore(tool, &PATIENT, &ruleset(random, v6))?);
    }
    Ok(text)
}

/// Now and then, chains where legacy tables have theirs.
fn native(random: &mut Random) -> String {
    if !random.percent(25) {
        return String::new();
    }
    let (hook, priority) = random.pick_value(&[("prerouting", -300), ("forward", 0), ("input", 0), ("output", -150)]);
    let rule = random.pick(&["meta mark 7 drop", "meta mark set meta mark or 0x20", "counter"]);
    let nat = if random.percent(50) {
        "chain n { type nat hook prerouting priority -100; tcp dport 80 redirect to :8080; }
         chain m { type nat hook postrouting priority 100; counter; }
"
    } else {
        ""
    };
    format!("table inet beside {{ chain c {{ type filter hook {hook} priority {priority}; {rule}; }}\n{nat} }}\n")
}
