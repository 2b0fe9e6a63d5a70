//! Where in netfilter a packet was dropped: every verdict has the same reason and function, only the stack tells the hook.
//!
//! Stacks come with exemplars, which are sampled. What one exemplar says holds for the packets of its key, and for those
//! dropped at the same place of the same namespace going the same way, as long as no other exemplar says otherwise.

use std::collections::HashMap;

use netdiag_common::observation::rules::Hook;
use netdiag_common::record::kfree_skb::Exemplar;

use super::exemplar::frames;
use super::key::GroupKey;
use super::names::Names;

/// Keys and places remembered: some hundred KiB. Beyond them groups have no hook until older ones are forgotten.
const MAX_KEYS: usize = 2048;
const MAX_PLACES: usize = 1024;

/// The hooks seen for one key or place.
#[derive(Debug, Clone, Copy)]
struct Seen {
    /// None when stacks disagree.
    hook: Option<Hook>,
    last_ns: u64,
}

#[derive(Debug, Default)]
pub(super) struct Hooks {
    by_key: HashMap<GroupKey, Seen>,
    by_place: HashMap<GroupKey, Seen>,
}

impl Hooks {
    pub(super) fn learn(&mut self, exemplar: &Exemplar, names: &Names) {
        let stack = frames(exemplar).iter().filter_map(|address| names.known(*address));
        let Some(hook) = of_stack(stack) else { return };
        let key = GroupKey::of(exemplar);
        note(&mut self.by_key, MAX_KEYS, key, hook, exemplar.at_ns);
        note(&mut self.by_place, MAX_PLACES, key.place(), hook, exemplar.at_ns);
    }

    pub(super) fn of(&self, key: &GroupKey) -> Option<Hook> {
        self.by_key.get(key).or_else(|| self.by_place.get(&key.place())).and_then(|seen| seen.hook)
    }

    pub(super) fn forget_before(&mut self, ns: u64) {
        self.by_key.retain(|_, seen| seen.last_ns >= ns);
        self.by_place.retain(|_, seen| seen.last_ns >= ns);
    }
}

fn note(seen: &mut HashMap<GroupKey, Seen>, limit: usize, key: GroupKey, hook: Hook, at_ns: u64) {
    if let Some(known) = seen.get_mut(&key) {
        known.hook = known.hook.filter(|known| *known == hook);
        known.last_ns = at_ns;
    } else if seen.len() < limit {
        seen.insert(key, Seen { hook: Some(hook), last_ns: at_ns });
    }
}

/// The hook of a stack whose innermost function is one of netfilter's: the first caller that runs a hook.
pub(in crate::kernel) fn of_stack<'a>(stack: impl Iterator<Item = &'a str>) -> Option<Hook> {
    let mut functions = stack.peekable();
    functions.next_if(|function| is_netfilter(function))?;
    functions.find_map(caller)
}

fn is_netfilter(function: &str) -> bool {
    ["nf_", "nft_", "ipt_", "ip6t_", "ebt_", "nfqnl_"].iter().any(|prefix| function.starts_with(prefix))
}

/// Functions that run a hook (`NF_HOOK` in net/ of Linux 5.10 to 7.2, and who they are inlined into).
fn caller(function: &str) -> Option<Hook> {
    Some(match function {
        "__netif_receive_skb_core" => Hook::Ingress,
        "ip_rcv"
        | "ipv6_rcv"
        | "ip_list_rcv"
        | "ipv6_list_rcv"
        | "ip_sublist_rcv"
        | "ip6_sublist_rcv"
        | "br_nf_pre_routing"
        | "br_nf_pre_routing_ipv6"
        | "br_handle_frame"
        | "arp_rcv" => Hook::Prerouting,
        "ip_local_deliver" | "ip6_input" | "ip6_mc_input" | "br_pass_frame_up" | "br_nf_local_in" => Hook::Input,
        "ip_forward" | "ip6_forward" | "ipmr_queue_xmit" | "ip6mr_forward2" | "__br_forward" | "br_nf_forward_ip"
        | "br_nf_forward" => Hook::Forward,
        "__ip_local_out" | "ip_local_out" | "__ip6_local_out" | "ip6_local_out" | "ip6_xmit" | "raw_send_hdrinc"
        | "rawv6_send_hdrinc" | "raw_sendmsg" | "rawv6_sendmsg" | "ndisc_send_skb" | "mld_sendpack" | "igmp6_send" => {
            Hook::Output
        }
        "ip_output" | "ip_mc_output" | "ip6_output" | "br_forward_finish" | "br_nf_post_routing" => Hook::Postrouting,
        "__dev_queue_xmit" => Hook::Egress,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::kfree_skb::key::tests::key_of_port;

    /// Stacks seen on Linux 6.18.
    #[test]
    fn the_stack_tells_the_hook() {
        let hook = |stack: &str| of_stack(stack.split(" < "));
        assert_eq!(hook("nft_do_chain < nft_do_chain_inet < nf_hook_slow < ip_forward"), Some(Hook::Forward));
        assert_eq!(hook("nf_hook_slow < ip_rcv < __netif_receive_skb_one_core"), Some(Hook::Prerouting));
        assert_eq!(
            hook("nft_do_chain < nft_do_chain_netdev < nf_hook_slow < __netif_receive_skb_core"),
            Some(Hook::Ingress)
        );
        assert_eq!(hook("nf_hook_slow < __ip_local_out < __ip_queue_xmit"), Some(Hook::Output));
        assert_eq!(hook("nf_hook_slow < ip_output < ip_forward"), Some(Hook::Postrouting));
        assert_eq!(hook("nf_queue < nf_hook_slow < ip_local_deliver"), Some(Hook::Input));
        assert_eq!(hook("tcp_v4_rcv < ip_protocol_deliver_rcu < ip_local_deliver"), None, "not netfilter's");
        assert_eq!(hook(""), None);
    }

    #[test]
    fn stacks_that_disagree_tell_nothing_about_others() {
        let mut hooks = Hooks::default();
        let (one, other, third) = (key_of_port(1), key_of_port(2), key_of_port(3));
        note(&mut hooks.by_key, 9, one, Hook::Input, 5);
        note(&mut hooks.by_place, 9, one.place(), Hook::Input, 5);
        assert_eq!(hooks.of(&third), Some(Hook::Input), "the same place, going the same way");
        note(&mut hooks.by_key, 9, other, Hook::Prerouting, 6);
        note(&mut hooks.by_place, 9, other.place(), Hook::Prerouting, 6);
        assert_eq!((hooks.of(&one), hooks.of(&other)), (Some(Hook::Input), Some(Hook::Prerouting)));
        assert_eq!(hooks.of(&third), None);
        hooks.forget_before(6);
        assert_eq!((hooks.of(&one), hooks.of(&other)), (None, Some(Hook::Prerouting)));
    }
}
