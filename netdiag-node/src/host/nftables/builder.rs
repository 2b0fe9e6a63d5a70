//! Puts the messages of a dump together: tables, chains, sets and elements first, then rules, which are decoded as they
//! come, so that only one copy of the ruleset is held.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;

use netdiag_common::observation::rules::{Backend, BaseChain, Chain, Hook, SERVICE_MAPS, Table, Verdict};

use super::attribute::{self, Attributes};
use super::expression;
use super::rule::{self, Context, MAX_INLINE_ELEMENTS, Style};
use super::set::{Element, Set};
use super::socket::Message;
use crate::host::budget::{Budget, KUBE_PROXY_TABLE, Limits};

/// Elements of any other set: one more than may be listed (ranges count twice), to know that there are more.
pub(super) const OTHER_ELEMENTS: usize = 2 * MAX_INLINE_ELEMENTS + 1;

/// `NFT_SET_MAP`
const IS_MAP: u32 = 0x8;

/// All of nf_tables in one namespace.
pub(crate) struct Nftables {
    pub generation: Option<u32>,
    pub tables: Vec<Table>,
    /// Named sets only: what anonymous ones hold is in the rules.
    pub sets: Vec<Set>,
    pub left_out: Vec<String>,
    pub budget: Budget,
}

pub(super) struct Builder {
    budget: Budget,
    interfaces: Vec<(u32, String)>,
    generation: Option<u32>,
    tables: Vec<Building>,
    left_out: Vec<String>,
}

struct Building {
    family: u8,
    table: Table,
    chains: HashMap<String, usize>,
    /// Chains of which rules were left out, by index.
    cut: HashSet<usize>,
    sets: HashMap<String, Set>,
    /// Known when all chains are, so at the first rule.
    style: Option<Style>,
}

impl Builder {
    pub(super) fn new(limits: Limits, interfaces: Vec<(u32, String)>) -> Self {
        Self { budget: Budget::new(limits), interfaces, generation: None, tables: Vec::new(), left_out: Vec::new() }
    }

    pub(super) fn generation(&self) -> Option<u32> {
        self.generation
    }

    /// Family, table and name of all sets, those with a name of their own first: where elements are limited, they say
    /// more.
    pub(super) fn set_names(&self) -> Vec<(u8, String, String)> {
        let mut sets: Vec<&Set> = self.tables.iter().flat_map(|table| table.sets.values()).collect();
        sets.sort_by_key(|set| set.is_anonymous());
        sets.into_iter().map(|set| (set.family, set.table.clone(), set.name.clone())).collect()
    }

    /// Whether the elements of a set should be asked for. A set for which there is no room is marked as such.
    pub(super) fn wants_elements(&mut self, family: u8, table: &str, set: &str) -> bool {
        let full = self.budget.is_out_of_service_elements();
        let set = self.table(family, table).and_then(|building| building.sets.get_mut(set));
        let unwanted = set.filter(|set| full && is_service_map(set));
        let wanted = unwanted.is_none();
        if let Some(set) = unwanted {
            set.complete = false;
        }
        wanted
    }

    /// Family, table and name of all chains.
    pub(super) fn chain_names(&self) -> Vec<(u8, String, String)> {
        let of = |building: &Building| {
            let name = |chain: &Chain| (building.family, building.table.name.clone(), chain.name.clone());
            building.table.chains.iter().map(name).collect::<Vec<_>>()
        };
        self.tables.iter().flat_map(of).collect()
    }

    /// Whether the rules of a chain should be asked for. A chain for which there is no room is marked as such.
    pub(super) fn wants_rules(&mut self, family: u8, table: &str, chain: &str) -> bool {
        let wanted = self.budget.admits(table, chain);
        if !wanted
            && let Some(building) = self.table(family, table)
            && let Some(index) = building.chains.get(chain)
        {
            building.cut.insert(*index);
        }
        wanted
    }

    /// Takes one message. Breaks when the rest of this dump is not wanted.
    pub(super) fn feed(&mut self, message: &Message<'_>) -> ControlFlow<()> {
        let attributes = Attributes(message.body);
        match message.kind {
            libc::NFT_MSG_NEWGEN => {
                let id = 1;
                self.generation = attributes.u32(id);
            }
            libc::NFT_MSG_NEWTABLE => self.add_table(message.family, attributes),
            libc::NFT_MSG_NEWCHAIN => self.add_chain(message.family, attributes),
            libc::NFT_MSG_NEWSET => {
                if let Some(set) = Set::parse(message.family, message.body)
                    && let Some(table) = self.table(message.family, &set.table)
                {
                    table.sets.insert(set.name.clone(), set);
                }
            }
            libc::NFT_MSG_NEWSETELEM => return self.add_elements(message.family, attributes),
            libc::NFT_MSG_NEWRULE => self.add_rule(message.family, attributes),
            _ => {}
        }
        ControlFlow::Continue(())
    }

    pub(super) fn finish(self) -> Nftables {
        let mut sets = Vec::new();
        let mut tables = Vec::new();
        for mut building in self.tables {
            if style_of(&building.table) == Style::Iptables {
                building.table.backend = Backend::IptablesNft;
            }
            // A jump to a chain that is not there is seen to be unknown; a chain without its last rules would not be.
            // A base chain stays, since without it nothing would say that there is one.
            let mut index = 0..;
            building.table.chains.retain(|chain| {
                let cut = index.next().is_some_and(|index| building.cut.contains(&index));
                !cut || chain.base.is_some()
            });
            sets.extend(building.sets.into_values().filter(|set| !set.is_anonymous()));
            tables.push(building.table);
        }
        sets.sort_by(|a, b| (a.family, &a.table, &a.name).cmp(&(b.family, &b.table, &b.name)));
        Nftables { generation: self.generation, tables, sets, left_out: self.left_out, budget: self.budget }
    }

    fn table(&mut self, family: u8, name: &str) -> Option<&mut Building> {
        self.tables.iter_mut().find(|building| building.family == family && building.table.name == name)
    }

    fn add_table(&mut self, family: u8, attributes: Attributes<'_>) {
        let name = 1;
        let Some(name) = attributes.text(name) else { return };
        let table = Table {
            backend: Backend::Nftables,
            family: family_name(family),
            name: name.into_owned(),
            chains: Vec::new(),
        };
        let (chains, cut, sets) = (HashMap::new(), HashSet::new(), HashMap::new());
        self.tables.push(Building { family, table, chains, cut, sets, style: None });
    }

    fn add_chain(&mut self, family: u8, attributes: Attributes<'_>) {
        let (table, name, hook, policy, kind) = (1, 3, 4, 5, 7);
        let (Some(table), Some(name)) = (attributes.text(table), attributes.text(name)) else { return };
        let base = attributes.find(hook).and_then(|body| {
            let (number, priority) = (1, 2);
            Some(BaseChain {
                hook: hook_of(family, Attributes(body).u32(number)?)?,
                priority: Attributes(body).u32(priority)?.cast_signed(),
                kind: attributes.text(kind)?.into_owned(),
                policy: if attributes.u32(policy) == Some(0) { Verdict::Drop } else { Verdict::Accept },
            })
        });
        let Some(building) = self.table(family, &table) else { return };
        building.chains.insert(name.clone().into_owned(), building.table.chains.len());
        building.table.chains.push(Chain { name: name.into_owned(), base, rules: Vec::new() });
    }

    fn add_elements(&mut self, family: u8, attributes: Attributes<'_>) -> ControlFlow<()> {
        let (table, set, elements) = (1, 2, 3);
        let (Some(table), Some(name), Some(list)) =
            (attributes.text(table), attributes.text(set), attributes.find(elements))
        else {
            return ControlFlow::Continue(());
        };
        let building =
            self.tables.iter_mut().find(|building| building.family == family && building.table.name == table);
        let Some(set) = building.and_then(|building| building.sets.get_mut(&*name)) else {
            return ControlFlow::Continue(());
        };
        let is_service_map = is_service_map(set);
        for (_, body) in Attributes(list) {
            let admitted =
                if is_service_map { self.budget.admits_service_element() } else { set.elements.len() < OTHER_ELEMENTS };
            if !admitted {
                set.complete = false;
                if is_service_map && !set.is_anonymous() {
                    let note = format!("{SERVICE_MAPS} {name} after the first {}", set.elements.len());
                    self.left_out.push(note);
                }
                return ControlFlow::Break(());
            }
            match Element::parse(body) {
                Some(element) => set.elements.push(element),
                None => set.complete = false,
            }
        }
        ControlFlow::Continue(())
    }

    fn add_rule(&mut self, family: u8, attributes: Attributes<'_>) {
        let (table, chain, handle, expressions, userdata) = (1, 2, 3, 4, 7);
        let (Some(table), Some(chain)) = (attributes.text(table), attributes.text(chain)) else { return };
        let Some(building) =
            self.tables.iter_mut().find(|building| building.family == family && building.table.name == table)
        else {
            return;
        };
        let Some(index) = building.chains.get(&*chain) else { return };
        if !self.budget.admits(&table, &chain) {
            building.cut.insert(*index);
            return;
        }
        let list = attributes.find(expressions).unwrap_or_default();
        let comment = attributes.find(userdata).and_then(attribute::user_comment);
        let style = *building.style.get_or_insert_with(|| style_of(&building.table));
        let has_xt = expression::uses_xt(list);
        if has_xt {
            building.table.backend = Backend::IptablesNft;
        }
        let context = Context {
            family,
            sets: &building.sets,
            interfaces: &self.interfaces,
            style: if has_xt { Style::Iptables } else { style },
            with_text: self.budget.with_text(),
        };
        let handle = attributes.u64(handle).unwrap_or(0);
        let rules = rule::decode(&context, handle, &chain, list, comment);
        self.budget.add(&table, &chain, rules.len());
        building.table.chains[*index].rules.extend(rules);
    }
}

fn is_service_map(set: &Set) -> bool {
    set.table == KUBE_PROXY_TABLE && set.flags & IS_MAP != 0
}

/// iptables-nft uses fixed table names, and upper-case names for base chains.
pub(super) fn style_of(table: &Table) -> Style {
    let tables = ["filter", "nat", "mangle", "raw", "security"];
    let chains = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
    let known = matches!(&*table.family, "ip" | "ip6")
        && tables.contains(&&*table.name)
        && table.chains.iter().filter(|chain| chain.base.is_some()).all(|chain| chains.contains(&&*chain.name));
    if known { Style::Iptables } else { Style::Nft }
}

fn family_name(family: u8) -> String {
    match i32::from(family) {
        libc::NFPROTO_IPV4 => "ip".into(),
        libc::NFPROTO_IPV6 => "ip6".into(),
        libc::NFPROTO_INET => "inet".into(),
        libc::NFPROTO_ARP => "arp".into(),
        libc::NFPROTO_BRIDGE => "bridge".into(),
        libc::NFPROTO_NETDEV => "netdev".into(),
        other => format!("family {other}"),
    }
}

/// `enum nf_inet_hooks`, and its counterparts for ARP and netdev.
fn hook_of(family: u8, number: u32) -> Option<Hook> {
    let hooks: &[Hook] = match i32::from(family) {
        libc::NFPROTO_NETDEV => &[Hook::Ingress, Hook::Egress],
        libc::NFPROTO_ARP => &[Hook::Input, Hook::Output, Hook::Forward],
        _ => &[Hook::Prerouting, Hook::Input, Hook::Forward, Hook::Output, Hook::Postrouting, Hook::Ingress],
    };
    hooks.get(number as usize).copied()
}
