//! Puts the messages of a dump together: tables, chains, sets and elements first, then rules, which are decoded as they
//! come, so that only one copy of the ruleset is held.

use std::collections::HashMap;
use std::ops::ControlFlow;

use netdiag_common::observation::rules::{Backend, BaseChain, Chain, Hook, Table, Verdict};

use super::attribute::{self, Attributes};
use super::expression;
use super::rule::{self, Context, MAX_INLINE_ELEMENTS, Style};
use super::set::{Element, Set};
use super::socket::Message;

/// How much is kept. A node with 10 000 Services of three endpoints has about 120 000 rules in iptables mode.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Rules, after look-ups in small sets were unfolded.
    pub rules: usize,
    /// The same for rules in the chains that kube-proxy makes for its Services: there are a hundred times more of them,
    /// and they must not crowd out the others.
    pub service_rules: usize,
    /// Elements of maps in kube-proxy's own tables, which are decoded as Services: all of them together.
    pub service_elements: usize,
    /// Whether rules carry their text.
    pub with_text: bool,
}

/// Elements of any other set: one more than may be listed (ranges count twice), to know that there are more.
const OTHER_ELEMENTS: usize = 2 * MAX_INLINE_ELEMENTS + 1;

/// `NFT_SET_MAP`
const IS_MAP: u32 = 0x8;

/// Of kube-proxy in nftables mode (`--proxy-mode=nftables`, since Kubernetes 1.29).
const KUBE_PROXY_TABLE: &str = "kube-proxy";

#[derive(Debug, Clone, Default)]
pub(crate) struct Nftables {
    pub generation: Option<u32>,
    pub tables: Vec<Table>,
    /// Named sets only: what anonymous ones hold is in the rules.
    #[expect(dead_code, reason = "read by the decoding of Services, which follows")]
    pub sets: Vec<Set>,
    pub left_out: Vec<String>,
}

pub(super) struct Builder {
    limits: Limits,
    interfaces: Vec<(u32, String)>,
    generation: Option<u32>,
    tables: Vec<Building>,
    rules: Counted,
    service_rules: Counted,
    service_elements: usize,
    left_out: Vec<String>,
}

#[derive(Default)]
struct Counted {
    kept: usize,
    left_out: usize,
}

struct Building {
    family: u8,
    table: Table,
    chains: HashMap<String, usize>,
    sets: HashMap<String, Set>,
    /// Known when all chains are, so at the first rule.
    style: Option<Style>,
}

impl Builder {
    pub(super) fn new(limits: Limits, interfaces: Vec<(u32, String)>) -> Self {
        Self {
            limits,
            interfaces,
            generation: None,
            tables: Vec::new(),
            rules: Counted::default(),
            service_rules: Counted::default(),
            service_elements: 0,
            left_out: Vec::new(),
        }
    }

    pub(super) fn generation(&self) -> Option<u32> {
        self.generation
    }

    /// Family, table and name of all sets.
    pub(super) fn set_names(&self) -> Vec<(u8, String, String)> {
        let of = |table: &Building| {
            let name = |set: &Set| (set.family, set.table.clone(), set.name.clone());
            table.sets.values().map(name).collect::<Vec<_>>()
        };
        self.tables.iter().flat_map(of).collect()
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

    pub(super) fn finish(mut self) -> Nftables {
        for (counted, whose) in
            [(&self.rules, "nf_tables"), (&self.service_rules, "nf_tables, chains of single Services")]
        {
            if counted.left_out > 0 {
                self.left_out.push(format!("{whose}: {} rules after the first {}", counted.left_out, counted.kept));
            }
        }
        let mut sets = Vec::new();
        let mut tables = Vec::new();
        for mut building in self.tables {
            if style_of(&building.table) == Style::Iptables {
                building.table.backend = Backend::IptablesNft;
            }
            sets.extend(building.sets.into_values().filter(|set| !set.is_anonymous()));
            tables.push(building.table);
        }
        sets.sort_by(|a, b| (a.family, &a.table, &a.name).cmp(&(b.family, &b.table, &b.name)));
        Nftables { generation: self.generation, tables, sets, left_out: self.left_out }
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
        let (chains, sets) = (HashMap::new(), HashMap::new());
        self.tables.push(Building { family, table, chains, sets, style: None });
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
        let (limits, mut used) = (self.limits, self.service_elements);
        let Some(set) = self.table(family, &table).and_then(|building| building.sets.get_mut(&*name)) else {
            return ControlFlow::Continue(());
        };
        let is_service_map = set.table == KUBE_PROXY_TABLE && set.flags & IS_MAP != 0;
        for (_, body) in Attributes(list) {
            let full =
                if is_service_map { used >= limits.service_elements } else { set.elements.len() >= OTHER_ELEMENTS };
            if full {
                set.complete = false;
                if is_service_map && !set.is_anonymous() {
                    let note = format!("map {name} of table {table}: elements after the first {}", set.elements.len());
                    self.left_out.push(note);
                }
                return ControlFlow::Break(());
            }
            match Element::parse(body) {
                Some(element) => set.elements.push(element),
                None => set.complete = false,
            }
            used += usize::from(is_service_map);
        }
        self.service_elements = used;
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
        let (counted, most) = if is_service_chain(&table, &chain) {
            (&mut self.service_rules, self.limits.service_rules)
        } else {
            (&mut self.rules, self.limits.rules)
        };
        if counted.kept >= most {
            counted.left_out += 1;
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
            with_text: self.limits.with_text,
        };
        let handle = attributes.u64(handle).unwrap_or(0);
        let rules = rule::decode(&context, handle, &chain, list, comment);
        counted.kept += rules.len();
        building.table.chains[*index].rules.extend(rules);
    }
}

/// Chains of which kube-proxy has one or more per Service or endpoint, and those with one rule per Service.
fn is_service_chain(table: &str, chain: &str) -> bool {
    let nftables = ["service-", "external-", "local-", "endpoint-", "firewall-"];
    let iptables = ["KUBE-SVC-", "KUBE-SEP-", "KUBE-EXT-", "KUBE-SVL-", "KUBE-FW-", "KUBE-SERVICES", "KUBE-NODEPORTS"];
    if table == KUBE_PROXY_TABLE {
        // Chain names of Services hold `namespace/name`; `service-endpoints-check` and its like do not.
        return chain.contains('/') && nftables.iter().any(|prefix| chain.starts_with(prefix));
    }
    iptables.iter().any(|prefix| chain.starts_with(prefix))
}

/// iptables-nft uses fixed table names, and upper-case names for base chains.
fn style_of(table: &Table) -> Style {
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
