//! The order of legacy tables and chains of nf_tables that have one priority.
//!
//! The kernel runs the one first that was registered last (`nf_hook_entries_grow`): a legacy table is registered when
//! somebody first uses it in the namespace (`xt_find_table_lock`), a chain when it is made, and neither says when that was.
//! Kernels with `CONFIG_NETFILTER_NETLINK_HOOK` would list the hooks in their order, without those of address translation.

use crate::forwarding::expression::Verdict;
use crate::forwarding::machine::{Result, Run};
use crate::forwarding::state::BaseChain;
use crate::forwarding::without::PassedOver;

/// Chains in the order of the kernel, given with legacy tables in front of their equals. Asks where it would matter: of
/// chains that let everything pass unseen, nobody cares which comes first.
pub(super) fn decided<'a>(run: &mut Run<'a>, chains: &[&'a BaseChain]) -> Result<Vec<&'a BaseChain>> {
    let mut ordered = chains.to_vec();
    for at in (0..ordered.len()).rev() {
        let legacy = ordered[at];
        if !legacy.key.family.is_legacy() {
            continue;
        }
        let mut at = at;
        while let Some(next) = ordered.get(at + 1).filter(|next| next.priority == legacy.priority) {
            if !does_something(run, legacy)? || !does_something(run, next)? {
                break;
            }
            let (table, chain) = (&legacy.key.table, &next.key);
            if run.decide(&format!("table {table} of {} runs before chain {chain}", legacy.key.family)) {
                break;
            }
            ordered.swap(at, at + 1);
            at += 1;
        }
    }
    Ok(ordered)
}

fn does_something(run: &Run<'_>, chain: &BaseChain) -> Result<bool> {
    if chain.policy != Verdict::Accept {
        return Ok(true);
    }
    let passed_over = PassedOver::of(run.without, &chain.key);
    Ok(run.state.chain(&chain.key)?.is_some_and(|chain| chain.rules.iter().any(|rule| !passed_over.has(rule))))
}
