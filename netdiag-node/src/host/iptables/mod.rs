//! Legacy iptables and ip6tables of the calling thread's network namespace, by `getsockopt` on a raw socket, as the
//! iptables command itself reads them. Only tables that exist are asked for: asking for another would create it.

mod entries;
mod entry;
mod exact;
mod sockopt;

use std::io;

use netdiag_common::observation::rules::Table;

use super::ReadError;
use super::budget::Budget;
pub(crate) use exact::LegacyTables;
use sockopt::Family;

/// The tables, and what was left out.
pub(crate) fn read(budget: &mut Budget) -> Result<(Vec<Table>, Vec<String>), ReadError> {
    let (mut tables, mut left_out) = (Vec::new(), Vec::new());
    for family in [Family::Ipv4, Family::Ipv6] {
        for name in sockopt::table_names(family)? {
            match sockopt::table(family, &name) {
                Ok(Some(blob)) => tables.push(entries::parse(family, &name, &blob, budget)?),
                Ok(None) => left_out.push(format!("legacy table {name} ({}): too large", family.name())),
                // Removed since it was listed.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(source) => return Err(failed(family, &name, source)),
            }
        }
    }
    Ok((tables, left_out))
}

fn failed(family: Family, name: &str, source: io::Error) -> ReadError {
    ReadError::Call { step: format!("read legacy table {name} of {}", family.command()), source }
}

/// All tables as bytes: family, name, offsets, entries.
#[cfg(test)]
pub(crate) fn record() -> Result<Vec<u8>, ReadError> {
    let mut recording = Vec::new();
    for family in [Family::Ipv4, Family::Ipv6] {
        for name in sockopt::table_names(family)? {
            let blob = sockopt::table(family, &name).map_err(|source| failed(family, &name, source))?;
            let blob = blob.expect("recorded tables are small");
            recording.push(u8::from(family == Family::Ipv6));
            let mut padded = name.into_bytes();
            padded.resize(31, 0);
            recording.extend_from_slice(&padded);
            let length = u32::try_from(blob.entries.len()).expect("recorded tables are small");
            for word in [blob.valid_hooks].iter().chain(&blob.hook_entry).chain(&blob.underflow).chain([&length]) {
                recording.extend_from_slice(&word.to_ne_bytes());
            }
            recording.extend_from_slice(&blob.entries);
        }
    }
    Ok(recording)
}

#[cfg(test)]
pub(crate) fn replay(recording: &[u8], budget: &mut Budget) -> Vec<Table> {
    let parse = |(family, name, blob): (_, String, _)| entries::parse(family, &name, &blob, budget).unwrap();
    replay_blobs(recording).into_iter().map(parse).collect()
}

#[cfg(test)]
fn replay_blobs(mut recording: &[u8]) -> Vec<(Family, String, sockopt::Blob)> {
    let mut blobs = Vec::new();
    while let Some((&family, rest)) = recording.split_first() {
        let family = if family == 0 { Family::Ipv4 } else { Family::Ipv6 };
        let name = String::from_utf8_lossy(&rest[..31]).trim_end_matches('\0').to_owned();
        let word = |index: usize| u32::from_ne_bytes(rest[31 + 4 * index..35 + 4 * index].try_into().unwrap());
        let (start, length) = (31 + 4 * 12, word(11) as usize);
        let blob = sockopt::Blob {
            valid_hooks: word(0),
            hook_entry: std::array::from_fn(|hook| word(1 + hook)),
            underflow: std::array::from_fn(|hook| word(6 + hook)),
            entries: rest[start..start + length].to_vec(),
        };
        blobs.push((family, name, blob));
        recording = &rest[start + length..];
    }
    blobs
}
