//! Conditions of a rule: comparisons, ranges and lookups in sets.

use netdiag_common::forwarding::expression::Operator;
use netdiag_common::observation::rules::{Match, Verdict};

use super::field::{self, Field, Interval, Subject};
use super::interval;
use super::register::Content;
use super::rule::{Context, Draft, MAX_INLINE_ELEMENTS, Style};
use super::set::{Entry, Set, Value};
use crate::host::xtables::words;

impl Draft {
    pub(super) fn compare(&mut self, context: &Context<'_>, from: u32, operator: Operator, value: &[u8]) {
        let negated = operator == Operator::NotEqual;
        let parts: Vec<(std::ops::Range<usize>, Content)> = match self.registers.parts(from, value.len()) {
            Some(parts) if !parts.is_empty() => parts
                .iter()
                .map(|part| (part.start..value.len().min(part.start + part.bytes), part.content.clone()))
                .collect(),
            _ => return self.other(format!("register {from} {} …", sign(operator))),
        };
        // Not equal means "one of the fields differs", which is not a list of conditions.
        if parts.len() > 1 && operator != Operator::Equal {
            return self.other(format!("{} fields {} …", parts.len(), sign(operator)));
        }
        for (range, content) in parts {
            let value = &value[range];
            match &content {
                Content::Field(field) if matches!(operator, Operator::Equal | Operator::NotEqual) => {
                    self.hold(context, field, &[interval::equal_to(field, value)], negated, None);
                }
                Content::Field(field) => match interval::ordered(field, operator, value) {
                    Some(interval) => self.bound(context, field, interval, operator),
                    None => self.other(format!("{} {} …", field.name, sign(operator))),
                },
                Content::Masked { field, mask } => self.compare_masked(context, field, mask, operator, value),
                content @ (Content::OneOf(_) | Content::Computed { .. }) => {
                    self.other(format!("{} {} {}", content.words(), sign(operator), field::host_endian(value)));
                }
            }
        }
    }

    pub(super) fn range(&mut self, context: &Context<'_>, from: u32, interval: Interval, negated: bool) {
        match self.registers.get(from).map(|loaded| loaded.content.clone()) {
            Some(Content::Field(field))
                if field.bytes == interval.first.len() && interval.last.len() == field.bytes =>
            {
                self.hold(context, &field, &[interval], negated, None);
            }
            content => {
                let name = content.map_or_else(|| format!("register {from}"), |content| content.words());
                self.other(format!("{name} {}in a range", if negated { "not " } else { "" }));
            }
        }
    }

    pub(super) fn lookup(
        mut self,
        context: &Context<'_>,
        name: &str,
        from: u32,
        to: Option<u32>,
        negated: bool,
    ) -> Vec<Self> {
        let Some(set) = context.sets.get(name) else {
            self.other(format!("lookup in @{name}"));
            return vec![self];
        };
        let small = set.elements.len() <= 2 * MAX_INLINE_ELEMENTS;
        let Some(key) = self.key(from, set) else {
            let verb = if negated { "not in" } else { "in" };
            self.other(format!("register {from} {verb} @{name}"));
            return vec![self];
        };
        let key_words = key.iter().map(|(_, content)| content.words()).collect::<Vec<_>>().join(" . ");
        let entries = small.then(|| set.entries()).flatten().filter(|entries| entries.len() <= MAX_INLINE_ELEMENTS);
        // A second unfolding would multiply the rules: what it asks is named instead.
        let unfolds =
            key.len() > 1 || to == Some(0) || !matches!(key[..], [(_, Content::Computed { .. })]) && to.is_some();
        let entries = entries.filter(|_| !(unfolds && self.unfolded));
        let is_verdict_map = to == Some(0);
        match entries {
            Some(entries) if to.is_some() => self.map(context, set, &entries, &key, &key_words, to.unwrap_or_default()),
            Some(entries) => self.member(context, set, &entries, &key, &key_words, negated),
            None if is_verdict_map => {
                self.words.push(format!("{key_words} vmap @{name}"));
                self.verdict = Some(Verdict::Map { name: name.to_owned() });
                vec![self]
            }
            None if to.is_some() => {
                self.other(format!("{key_words} map @{name}"));
                self.registers.load(to.unwrap_or_default(), vec![]);
                vec![self]
            }
            None => {
                let not = if negated { "!= " } else { "" };
                self.other(format!("{key_words} {not}@{name}"));
                vec![self]
            }
        }
    }

    /// The contents of the registers a set is asked with, each with its place in the key.
    fn key(&self, from: u32, set: &Set) -> Option<Vec<(std::ops::Range<usize>, Content)>> {
        let first = self.registers.get(from)?;
        let bytes = set.key_bytes;
        if bytes == 0 {
            return Some(vec![(0..0, first.content.clone())]);
        }
        let parts = self.registers.parts(from, bytes)?;
        Some(parts.iter().map(|part| (part.start..part.start + part.bytes, part.content.clone())).collect())
    }

    /// A lookup without result: the packet's fields are in the set, or not.
    fn member(
        mut self,
        context: &Context<'_>,
        set: &Set,
        entries: &[Entry<'_>],
        key: &[(std::ops::Range<usize>, Content)],
        key_words: &str,
        negated: bool,
    ) -> Vec<Self> {
        let label = (!set.is_anonymous()).then(|| format!("@{}", set.name));
        let not = if negated { "!= " } else { "" };
        let keys: Option<Vec<Interval>> = entries.iter().map(|entry| entry.keys.clone()).collect();
        if let ([(range, Content::Field(field))], Some(keys)) = (key, &keys) {
            let cut: Vec<_> = keys.iter().filter_map(|interval| interval::cut(interval, range)).collect();
            if cut.len() == keys.len() {
                self.hold(context, field, &cut, negated, label.as_deref());
                return vec![self];
            }
        }
        let label = label.unwrap_or_else(|| format!("{{ {} elements }}", entries.len()));
        let words = format!("{key_words} {not}{label}");
        if negated || entries.is_empty() {
            self.other(words);
            return vec![self];
        }
        self.words.push(words.clone());
        self.fork(context, entries, key, &words, |_, _| ())
    }

    /// A lookup with a result: a verdict (register 0), or a value for a later expression.
    fn map(
        mut self,
        context: &Context<'_>,
        set: &Set,
        entries: &[Entry<'_>],
        key: &[(std::ops::Range<usize>, Content)],
        key_words: &str,
        to: u32,
    ) -> Vec<Self> {
        let verb = if to == 0 { "vmap" } else { "map" };
        let label = if set.is_anonymous() { spell(context, entries, key) } else { format!("@{}", set.name) };
        let words = format!("{key_words} {verb} {label}");
        let bytes = |entry: &Entry<'_>| match entry.value {
            Value::Bytes(bytes) => Some(bytes.to_vec()),
            Value::None | Value::Verdict(_) => None,
        };
        if let ([(_, Content::Computed { random: true, .. })], true) = (key, to != 0)
            && let Some(values) = entries.iter().map(bytes).collect::<Option<Vec<_>>>()
        {
            // Chosen at random: any of the values, which whoever uses them lists.
            let width = values.iter().map(Vec::len).min().unwrap_or(0);
            self.words.push(key_words.to_owned());
            self.registers.load(to, vec![(Content::OneOf(values), width)]);
            return vec![self];
        }
        if entries.is_empty() {
            self.words.push(words);
            self.verdict = (to == 0).then(|| Verdict::Map { name: set.name.clone() });
            return vec![self];
        }
        self.words.push(words.clone());
        self.fork(context, entries, key, &words, |draft, entry| match entry.value {
            Value::Verdict(verdict) => draft.verdict = Some(verdict.clone()),
            Value::Bytes(value) => {
                draft.registers.load(to, vec![(Content::OneOf(vec![value.to_vec()]), value.len())]);
            }
            Value::None => {}
        })
    }

    /// One draft per element, each with the conditions that its key stands for.
    fn fork(
        self,
        context: &Context<'_>,
        entries: &[Entry<'_>],
        key: &[(std::ops::Range<usize>, Content)],
        words: &str,
        mut then: impl FnMut(&mut Self, &Entry<'_>),
    ) -> Vec<Self> {
        let forked = |entry: &Entry<'_>| {
            let mut draft = self.clone();
            draft.unfolded = true;
            match &entry.keys {
                Some(keys) => {
                    for (range, content) in key {
                        draft.matches.push(element_match(context, content, keys, range, words));
                    }
                }
                None => draft.matches.push(Match::Other { text: format!("{words}: no other element") }),
            }
            then(&mut draft, entry);
            draft
        };
        entries.iter().map(forked).collect()
    }

    /// "The field is in these intervals", or is not. `label` replaces their listing in the text.
    fn hold(
        &mut self,
        context: &Context<'_>,
        field: &Field,
        intervals: &[Interval],
        negated: bool,
        label: Option<&str>,
    ) {
        if !negated && let [one] = intervals {
            self.learn(field, one);
        }
        let text = self.phrase(context, field, intervals, negated, label);
        self.matches.push(
            field
                .matching(intervals, negated, context.interfaces)
                .unwrap_or_else(|| Match::Other { text: text.clone() }),
        );
        self.words.push(text);
    }

    fn phrase(
        &mut self,
        context: &Context<'_>,
        field: &Field,
        intervals: &[Interval],
        negated: bool,
        label: Option<&str>,
    ) -> String {
        if !context.with_text && field.matching(&[], false, &[]).is_some() {
            return String::new();
        }
        let values = label.map_or_else(|| field.values(intervals, context.interfaces), str::to_owned);
        if context.style == Style::Iptables
            && let Some(option) = iptables_option(field.subject)
        {
            let values = if option.ends_with("port") { values.replace('-', ":") } else { values };
            return format!("{}{option} {}", if negated { "! " } else { "" }, values.trim_matches('"'));
        }
        // nft leaves out what a later field implies: `tcp dport 80` says that the protocol is tcp.
        let implied = |last: &String| {
            (field.name.starts_with("ip ") && last == "meta nfproto ipv4")
                || (field.name.starts_with("ip6 ") && last == "meta nfproto ipv6")
                || last.strip_prefix("meta l4proto ").is_some_and(|transport| {
                    field.name.strip_prefix(transport).is_some_and(|rest| rest.starts_with(' '))
                })
        };
        if self.words.last().is_some_and(implied) {
            self.words.pop();
        }
        format!("{} {}{values}", field.name, if negated { "!= " } else { "" })
    }

    /// `>= first` and `<= last` come one after the other for a range: the second one narrows the first.
    fn bound(&mut self, context: &Context<'_>, field: &Field, interval: Interval, operator: Operator) {
        let narrowed = (operator == Operator::LessOrEqual)
            .then(|| self.lower_bound.take())
            .flatten()
            .filter(|(bounded, _, matches)| bounded == field && *matches == self.matches.len())
            .map(|(_, first, _)| Interval { first, last: interval.last.clone() });
        match narrowed {
            Some(range) => {
                self.matches.pop();
                self.words.pop();
                self.hold(context, field, &[range], false, None);
            }
            None => self.hold(context, field, std::slice::from_ref(&interval), false, None),
        }
        if operator == Operator::GreaterOrEqual {
            self.lower_bound = Some((field.clone(), interval.first, self.matches.len()));
        }
    }

    fn compare_masked(&mut self, context: &Context<'_>, field: &Field, mask: &[u8], operator: Operator, value: &[u8]) {
        let zero = value.iter().all(|byte| *byte == 0);
        let negated = operator == Operator::NotEqual;
        if field.subject == Subject::ConntrackState {
            // `ct state a,b` is "some bit of the mask is set".
            if let (true, Operator::NotEqual | Operator::Equal, Some(states)) =
                (zero, operator, field::state_names(field::host_endian(mask)))
            {
                let not = if negated { "" } else { "!= " };
                self.words.push(if context.style == Style::Iptables {
                    format!(
                        "-m conntrack {}--ctstate {}",
                        if negated { "" } else { "! " },
                        states.join(",").to_uppercase()
                    )
                } else {
                    format!("ct state {not}{}", states.join(","))
                });
                self.matches.push(Match::ConntrackState { states, negated: !negated });
                return;
            }
        } else if let (Subject::Source | Subject::Destination, Some(prefix), Operator::Equal | Operator::NotEqual) =
            (field.subject, interval::prefix(mask, value), operator)
        {
            return self.hold(context, field, &[prefix], negated, None);
        }
        if context.style == Style::Iptables && field.name == "meta mark" {
            let not = if negated { "! " } else { "" };
            let (value, mask) = (field::host_endian(value), field::host_endian(mask));
            return self.other(format!("-m mark {not}--mark {value:#x}/{mask:#x}"));
        }
        let name = Content::Masked { field: field.clone(), mask: mask.to_vec() }.words();
        self.other(format!("{name} {} {:#x}", sign(operator), field::host_endian(value)));
    }
}

fn sign(operator: Operator) -> &'static str {
    match operator {
        Operator::Equal => "==",
        Operator::NotEqual => "!=",
        Operator::Less => "<",
        Operator::LessOrEqual => "<=",
        Operator::Greater => ">",
        Operator::GreaterOrEqual => ">=",
    }
}

fn iptables_option(subject: Subject) -> Option<&'static str> {
    match subject {
        Subject::Source => Some("-s"),
        Subject::Destination => Some("-d"),
        Subject::Protocol => Some("-p"),
        Subject::InputInterface => Some("-i"),
        Subject::OutputInterface => Some("-o"),
        Subject::SourcePort => Some("--sport"),
        Subject::DestinationPort => Some("--dport"),
        _ => None,
    }
}

fn element_match(
    context: &Context<'_>,
    content: &Content,
    keys: &Interval,
    range: &std::ops::Range<usize>,
    words: &str,
) -> Match {
    let Some(interval) = interval::cut(keys, range) else { return Match::Other { text: words.to_owned() } };
    match content {
        Content::Field(field) => {
            field.matching(std::slice::from_ref(&interval), false, context.interfaces).unwrap_or_else(|| Match::Other {
                text: format!("{} {}", field.name, field.value(&interval, context.interfaces)),
            })
        }
        content => Match::Other { text: format!("{} is {}", content.words(), field::host_endian(&interval.first)) },
    }
}

/// The elements of an anonymous map as nft prints them.
fn spell(context: &Context<'_>, entries: &[Entry<'_>], key: &[(std::ops::Range<usize>, Content)]) -> String {
    if !context.with_text {
        return String::new();
    }
    let one = |entry: &Entry<'_>| {
        let key_words = match &entry.keys {
            None => "*".to_owned(),
            Some(keys) => {
                let parts = key.iter().filter_map(|(range, content)| {
                    let interval = interval::cut(keys, range)?;
                    Some(match content {
                        Content::Field(field) => field.value(&interval, context.interfaces),
                        _ => field::host_endian(&interval.first).to_string(),
                    })
                });
                parts.collect::<Vec<_>>().join(" . ")
            }
        };
        let value = match entry.value {
            Value::Verdict(verdict) => words::nft_verdict(verdict),
            Value::Bytes(value) => words::nat_value(value),
            Value::None => String::new(),
        };
        format!("{key_words} : {value}")
    };
    words::braces(entries.len(), entries.iter().map(one))
}
