//! Legacy tables of the calling thread's network namespace for the evaluator. The kernel gives whole tables only, so they
//! are kept as the bytes it gave, and chains are made of them as the evaluator asks: memory stays below twice the tables.

mod loops;
mod table;

use netdiag_common::forwarding::packet::Protocol;
use netdiag_common::forwarding::state::{BaseChain, Chain, ChainKey, Family, Foreign, Hook};
use netdiag_common::observation::fate::FateRule;

use self::table::IndexedTable;
use super::sockopt;
use crate::host::ReadError;

/// All tables, read at once.
pub(crate) struct LegacyTables {
    tables: Vec<IndexedTable>,
    unread: Vec<Foreign>,
}

/// Tables with a hook here that have no meaning to this version are named, and not guessed at.
const TABLES: [&str; 5] = ["raw", "mangle", "nat", "filter", "security"];

impl LegacyTables {
    pub(crate) fn read() -> Result<Self, ReadError> {
        let (mut tables, mut unread) = (Vec::new(), Vec::new());
        for family in [sockopt::Family::Ipv4, sockopt::Family::Ipv6] {
            for name in sockopt::table_names(family)? {
                match read_one(family, &name) {
                    Ok(Some(table)) => tables.push(table),
                    // Removed since it was listed.
                    Ok(None) => {}
                    Err(why) => unread.push(foreign(family, &name, &why)),
                }
            }
        }
        Ok(Self { tables, unread })
    }

    pub(crate) fn base_chains(&self) -> Vec<BaseChain> {
        self.tables.iter().flat_map(IndexedTable::base_chains).collect()
    }

    /// Tables that could not be read.
    pub(crate) fn unread(&self) -> Vec<Foreign> {
        self.unread.clone()
    }

    pub(crate) fn chain(&self, key: &ChainKey) -> Option<Chain> {
        self.table(key)?.chain(&key.chain)
    }

    /// A rule in words, such as those of `iptables -S`.
    pub(crate) fn worded(&self, key: &ChainKey, number: u64) -> Option<FateRule> {
        let rule = self.table(key)?.worded(&key.chain, number)?;
        let (text, comment, counter) = (rule.text, rule.comment, rule.counter);
        Some(FateRule { chain: key.clone(), handle: number, text, comment, counter })
    }

    /// Whether any match or target in tables of this protocol is as asked, by its name and structure.
    pub(crate) fn has_part(&self, protocol: Protocol, is_wanted: &dyn Fn(&str, &[u8]) -> bool) -> bool {
        let own = if protocol == Protocol::Ipv4 { Family::LegacyIp } else { Family::LegacyIp6 };
        self.tables.iter().any(|table| table.family() == own && table.has_part(is_wanted))
    }

    fn table(&self, key: &ChainKey) -> Option<&IndexedTable> {
        self.tables.iter().find(|table| table.family() == key.family && *table.name() == *key.table)
    }
}

/// None when the table is gone; otherwise the table, or why it is not known.
fn read_one(family: sockopt::Family, name: &str) -> Result<Option<IndexedTable>, String> {
    if !TABLES.contains(&name) {
        return Err("which is none of those that this version knows".into());
    }
    match sockopt::table(family, name) {
        Ok(Some(blob)) => {
            IndexedTable::new(family, name, blob).map(Some).map_err(|why| format!("which makes no sense: {why}"))
        }
        Ok(None) => Err("which is too large to be read".into()),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(format!("which could not be read: {error}")),
    }
}

fn foreign(family: sockopt::Family, name: &str, why: &str) -> Foreign {
    let protocol = if family == sockopt::Family::Ipv4 { Protocol::Ipv4 } else { Protocol::Ipv6 };
    let what = format!("table {name} of legacy {}, {why},", family.command());
    Foreign { protocol: Some(protocol), hook: None::<Hook>, what }
}

#[cfg(test)]
mod tests;
