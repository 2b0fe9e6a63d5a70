//! nf_tables of the calling thread's network namespace, over netlink. Covers what iptables-nft wrote as well.

pub(super) mod attribute;
mod builder;
mod condition;
mod exact;
mod expression;
mod field;
mod interval;
mod load;
mod register;
mod rule;
mod set;
mod socket;
mod worded;

use std::io;
use std::ops::ControlFlow;
use std::thread;
use std::time::Duration;

pub(crate) use builder::Nftables;
pub(crate) use exact::ExactTables;
pub(super) use exact::{family_of, verdict_of};
pub(crate) use set::{Element, Set, Value};
use socket::{Dump, Message, NfTables};
pub(crate) use worded::in_words;

use self::builder::Builder;
use super::ReadError;
use super::budget::Limits;

/// A dump is repeated when a transaction came in between. Writers such as kube-proxy commit in bursts of a few; after four
/// tries the reading is given with a note.
const MAX_ATTEMPTS: u32 = 4;

/// Longer than a commit of ten thousand rules takes.
const PAUSE: Duration = Duration::from_millis(50);

/// `NFPROTO_UNSPEC`: all families.
const ANY_FAMILY: u8 = 0;

/// Reads everything; none when this kernel or namespace has no nf_tables.
pub(crate) fn read(limits: Limits) -> Result<Option<Nftables>, ReadError> {
    let mut last = None;
    for attempt in 0..MAX_ATTEMPTS {
        if attempt > 0 {
            thread::sleep(PAUSE);
        }
        // Freed before the next attempt, so that two readings are never held at once.
        drop(last.take());
        let mut builder = Builder::new(limits, interfaces());
        match dump_all(&mut builder, &mut |_| ()) {
            Ok(true) => return Ok(Some(builder.finish())),
            Ok(false) => last = Some(builder),
            Err(source) if is_absent(&source) => return Ok(None),
            Err(source) => return Err(ReadError::Call { step: "read the rules of nf_tables".into(), source }),
        }
    }
    Ok(last.map(|builder| {
        let mut tables = builder.finish();
        tables
            .left_out
            .push(format!("nf_tables changed during each of {MAX_ATTEMPTS} readings: parts may not fit together"));
        tables
    }))
}

/// What a kernel without nf_tables answers: no such protocol, or no such subsystem (`nfnetlink_rcv_msg`).
fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPROTONOSUPPORT | libc::EOPNOTSUPP | libc::EINVAL))
}

/// Names of the interfaces here. Without them, rules by index keep the number.
fn interfaces() -> Vec<(u32, String)> {
    let Ok(all) = nix::net::if_::if_nameindex() else { return Vec::new() };
    all.iter().map(|interface| (interface.index(), interface.name().to_string_lossy().into_owned())).collect()
}

/// One pass over all objects. `seen` gets every message first. False when the rules changed meanwhile.
fn dump_all(builder: &mut Builder, seen: &mut dyn FnMut(&Message<'_>)) -> io::Result<bool> {
    let mut socket = NfTables::open()?;
    let before = generation(&mut socket, builder, seen)?;
    let mut consistent = true;
    for request in [libc::NFT_MSG_GETTABLE, libc::NFT_MSG_GETCHAIN, libc::NFT_MSG_GETSET] {
        let ended = socket.request(request, ANY_FAMILY, &[], true, &mut |message| {
            seen(message);
            builder.feed(message)
        })?;
        consistent &= ended == Dump::Complete;
    }
    // One request per set, for which the kernel walks its list of sets: with the 10 000 sets of as many Services this is
    // most of the time a reading takes (3 s where everything else takes 0.5 s).
    for (family, table, set) in builder.set_names() {
        if !builder.wants_elements(family, &table, &set) {
            continue;
        }
        let (table_name, set_name) = (1, 2);
        let attributes = [(table_name, &*table), (set_name, &*set)];
        let ended = socket.request(libc::NFT_MSG_GETSETELEM, family, &attributes, true, &mut |message| {
            seen(message);
            builder.feed(message)
        });
        match ended {
            Ok(Dump::Complete) => {}
            // The rest of the dump is left in the old socket.
            Ok(Dump::Stopped) => socket = NfTables::open()?,
            Ok(Dump::Interrupted) => return Ok(false),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    // By chain, although one dump could hold all rules: the kernel starts such a dump over for every 32 KiB and skips what
    // it has sent, which takes quadratic time (`nf_tables_dump_rules`).
    for (family, table, chain) in builder.chain_names() {
        if !builder.wants_rules(family, &table, &chain) {
            continue;
        }
        let (table_name, chain_name) = (1, 2);
        let attributes = [(table_name, &*table), (chain_name, &*chain)];
        let ended = socket.request(libc::NFT_MSG_GETRULE, family, &attributes, true, &mut |message| {
            seen(message);
            builder.feed(message)
        })?;
        if ended != Dump::Complete {
            return Ok(false);
        }
    }
    let after = generation(&mut socket, builder, &mut |_| ())?;
    Ok(consistent && before == after)
}

fn generation(
    socket: &mut NfTables,
    builder: &mut Builder,
    seen: &mut dyn FnMut(&Message<'_>),
) -> io::Result<Option<u32>> {
    socket.request(libc::NFT_MSG_GETGEN, ANY_FAMILY, &[], false, &mut |message| {
        seen(message);
        let _ = builder.feed(message);
        ControlFlow::Continue(())
    })?;
    Ok(builder.generation())
}

/// The messages of one reading, as they came.
#[cfg(test)]
pub(crate) fn record(limits: Limits) -> io::Result<Vec<u8>> {
    let mut recording = Vec::new();
    let mut builder = Builder::new(limits, interfaces());
    dump_all(&mut builder, &mut |message| recording.extend_from_slice(message.raw))?;
    Ok(recording)
}

/// The reading that recorded messages make.
#[cfg(test)]
pub(crate) fn replay(recording: &[u8], limits: Limits) -> Nftables {
    let mut builder = Builder::new(limits, vec![(1, "lo".into())]);
    for message in socket::recorded(recording) {
        let _ = builder.feed(&message);
    }
    builder.finish()
}

#[cfg(test)]
mod tests {
    use netdiag_common::observation::rules::Verdict;
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits { rules: 1000, service_rules: 1000, service_elements: 1000, with_text: true };

    fn attributes(list: &[(u16, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (kind, value) in list {
            attribute::push(&mut bytes, *kind, value);
        }
        bytes
    }

    /// nft takes letters and digits for names, the kernel any bytes (`nf_tables_addchain`, net/netfilter/nf_tables_api.c).
    #[test]
    fn names_of_any_bytes_stay_what_they_are_and_texts_are_quoted() {
        const NAME: &str = "n\u{1b}[2J\u{202e}eman\n";
        let ended = format!("{NAME}\0");
        let name = ended.as_bytes();
        let expression = |kind: &[u8], of: &[(u16, &[u8])]| attributes(&[(1, kind), (2, &attributes(of))]);
        let log = expression(b"log\0", &[(2, name)]);
        // `NFT_JUMP`, within `NFTA_DATA_VERDICT`.
        let verdict = attributes(&[(1, &(-3_i32).to_be_bytes()), (2, name)]);
        let jump = expression(b"immediate\0", &[(1, &[0; 4]), (2, &attributes(&[(2, &verdict)]))]);
        let comment = [&[0, u8::try_from(name.len()).unwrap()][..], name].concat();
        let rule = |expression: &[u8], comment: &[u8]| {
            attributes(&[(1, name), (2, name), (3, &[0; 8]), (4, &attributes(&[(1, expression)])), (7, comment)])
        };
        let messages = [
            (libc::NFT_MSG_NEWTABLE, attributes(&[(1, name)])),
            (libc::NFT_MSG_NEWCHAIN, attributes(&[(1, name), (3, name)])),
            (libc::NFT_MSG_NEWSET, attributes(&[(1, name), (2, name)])),
            (libc::NFT_MSG_NEWRULE, rule(&log, &comment)),
            (libc::NFT_MSG_NEWRULE, rule(&jump, &[])),
        ];
        let mut builder = Builder::new(LIMITS, Vec::new());
        for (kind, body) in &messages {
            let _ = builder.feed(&Message { kind: *kind, family: 2, body, raw: &[] });
        }
        let found = builder.finish();
        let chain = &found.tables[0].chains[0];
        // With these the kernel is asked for them again.
        assert_eq!([&found.tables[0].name, &chain.name, &found.sets[0].name], [NAME; 3]);
        let [logs, jumps] = &chain.rules[..] else { panic!("{:?}", chain.rules) };
        assert_eq!(jumps.verdict, Verdict::Jump { chain: NAME.to_owned() });
        assert_eq!(logs.comment.as_deref(), Some(NAME));
        let quoted = r#""n\u{1b}[2J\u{202e}eman\n""#;
        assert_eq!(logs.text, format!("log prefix {quoted} comment {quoted}"));
    }

    proptest! {
        // Each case replays a whole recording.
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Whatever a broken or newer kernel sends, the reading ends, and keeps within its limits.
        #[test]
        fn damaged_messages_never_panic(
            at in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..40),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut recording = include_bytes!("../../../tests/fixtures/rules/kube-proxy-nftables.netlink").to_vec();
            for (at, byte) in at {
                let at = at.index(recording.len());
                recording[at] = byte;
            }
            recording.truncate(cut.index(recording.len()) + 1);
            let tables = replay(&recording, LIMITS);
            prop_assert!(tables.tables.len() < 100);
        }
    }
}
