//! Which part of a program's configuration a chain stands for, by the name that the program gives it.

/// What firewalld's chains begin with where it writes through nf_tables: the table that they would be in of iptables.
const TABLES: [&str; 4] = ["filter_", "nat_", "mangle_", "raw_"];
/// Then the way that packets take (`src/firewall/core/nftables.py` and `ipXtables.py`, firewalld 2.0).
const WAYS: [&str; 7] = ["IN_", "FWDI_", "FWDO_", "FWD_", "PRE_", "POST_", "OUT_"];
/// Then the zone, and what is done there.
const STEPS: [&str; 5] = ["_pre", "_log", "_deny", "_allow", "_post"];

/// What stands before the names of Calico's chains in tables of nf_tables.
pub(super) const LAYERS: [&str; 4] = ["filter-", "nat-", "mangle-", "raw-"];
/// What Calico's chains begin with (`felix/rules/rule_defs.go`), and what follows.
const CALICO: [(&str, &str); 4] =
    [("cali-tw-", "interface"), ("cali-fw-", "interface"), ("cali-pi-", "policy"), ("cali-po-", "policy")];

/// `zone public`, `policy default.deny`, `interface cali1234`; none for chains that are for all of them.
pub fn part(table: &str, chain: &str) -> Option<String> {
    zone(table, chain).or_else(|| of_calico(chain))
}

fn zone(table: &str, chain: &str) -> Option<String> {
    let rest = if table == "firewalld" {
        let rest = TABLES.iter().find_map(|table| chain.strip_prefix(table))?;
        WAYS.iter().find_map(|way| rest.strip_prefix(way))?
    } else {
        // Other names that it gives through iptables may be anybody's.
        chain.strip_prefix("FWDI_").or_else(|| chain.strip_prefix("FWDO_"))?
    };
    let rest = STEPS.iter().find_map(|step| rest.strip_suffix(step)).unwrap_or(rest);
    Some(match rest.strip_prefix("policy_") {
        Some(policy) => format!("policy {policy}"),
        None => format!("zone {rest}"),
    })
}

/// A name that was too long begins with `_`, and is a hash.
fn of_calico(chain: &str) -> Option<String> {
    let own = LAYERS.iter().find_map(|layer| chain.strip_prefix(layer)).unwrap_or(chain);
    let (name, what) = CALICO.iter().find_map(|(prefix, what)| own.strip_prefix(prefix).map(|name| (name, *what)))?;
    (!name.starts_with('_')).then(|| format!("{what} {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(table: &str, chain: &str) -> String {
        part(table, chain).unwrap_or_default()
    }

    #[test]
    fn zones_and_policies_of_firewalld_are_in_its_chains_names() {
        assert_eq!(of("firewalld", "filter_FWD_public_deny"), "zone public");
        assert_eq!(of("firewalld", "filter_IN_home"), "zone home");
        assert_eq!(of("firewalld", "nat_POST_policy_pods-out_allow"), "policy pods-out");
        assert_eq!(of("filter", "FWDI_public_log"), "zone public");
        for chain in ["filter_FORWARD", "filter_INPUT_POLICIES", "nat_PREROUTING_POLICIES_pre"] {
            assert_eq!(part("firewalld", chain), None, "{chain}");
        }
        assert_eq!(part("filter", "IN_public"), None);
    }

    #[test]
    fn a_chain_of_calico_names_its_interface_or_its_policy() {
        assert_eq!(of("filter", "cali-tw-cali0f5c"), "interface cali0f5c");
        assert_eq!(of("calico", "filter-cali-fw-cali0f5c"), "interface cali0f5c");
        assert_eq!(of("filter", "cali-pi-default.deny"), "policy default.deny");
        for chain in ["cali-FORWARD", "cali-pi-_Vx3k9Q", "cali-pri-kns.shop"] {
            assert_eq!(part("filter", chain), None, "{chain}");
        }
    }
}
