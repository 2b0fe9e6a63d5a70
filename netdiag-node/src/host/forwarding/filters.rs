//! The two packet filters of a namespace as one: chains by their keys, of nf_tables or of legacy tables.

use std::collections::{BTreeMap, BTreeSet};

use netdiag_common::forwarding::packet::Protocol;
use netdiag_common::forwarding::state::{BaseChain, Chain, ChainKey, Foreign};
use netdiag_common::observation::fate::FateRule;

use crate::host::ReadError;
use crate::host::iptables::LegacyTables;
use crate::host::nftables::ExactTables;

pub(super) struct Filters {
    pub(super) nftables: ExactTables,
    /// None until the hooks are read.
    legacy: Option<LegacyTables>,
}

impl Filters {
    pub(super) fn open() -> Result<Self, ReadError> {
        Ok(Self { nftables: ExactTables::open()?, legacy: None })
    }

    /// All base chains, and what could not be read of them.
    pub(super) fn base_chains(&mut self) -> Result<(Vec<BaseChain>, Vec<Foreign>), ReadError> {
        // What an attempt before this one read goes first: tables may have tens of megabytes.
        self.legacy = None;
        let legacy = self.legacy.insert(LegacyTables::read()?);
        let mut chains = self.nftables.base_chains()?;
        chains.extend(legacy.base_chains());
        Ok((chains, legacy.unread()))
    }

    pub(super) fn chain(&mut self, key: &ChainKey) -> Result<Option<Chain>, ReadError> {
        if key.family.is_legacy() {
            return Ok(self.legacy.as_ref().and_then(|legacy| legacy.chain(key)));
        }
        self.nftables.chain(key)
    }

    /// Whether a match or target of legacy tables is as asked, by its name and structure.
    pub(super) fn has_legacy_part(&self, protocol: Protocol, is_wanted: &dyn Fn(&str, &[u8]) -> bool) -> bool {
        self.legacy.as_ref().is_some_and(|legacy| legacy.has_part(protocol, is_wanted))
    }

    /// The legacy ones of these rules in words, from the same reading.
    pub(super) fn legacy_rules(&self, wanted: &BTreeMap<ChainKey, BTreeSet<u64>>) -> Vec<FateRule> {
        let Some(legacy) = &self.legacy else { return Vec::new() };
        let wanted = wanted.iter().filter(|(chain, _)| chain.family.is_legacy());
        let rules =
            wanted.flat_map(|(chain, numbers)| numbers.iter().filter_map(|number| legacy.worded(chain, *number)));
        rules.collect()
    }
}
