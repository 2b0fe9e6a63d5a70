//! What programs asked of their libraries: host names looked up, TLS handshakes of clients. Seen by uprobes, when asked for.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Owner;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Libraries {
    /// The window's start; counts are what happened since.
    pub since: Timestamp,
    /// Seconds of the window.
    pub window_s: f64,
    /// Of all processes that use a probed file, not only of this node's pods.
    pub accounts: LibraryAccounts,
    /// Most often first.
    pub groups: Vec<LibraryGroup>,
    /// Groups beyond those listed; their calls are in `accounts` all the same.
    #[serde(default)]
    pub omitted_groups: u64,
    /// Files that are probed now, and those that could not be.
    pub files: Vec<ProbedFile>,
    /// Files beyond the limit, not probed.
    #[serde(default)]
    pub omitted_files: u64,
}

/// In calls that have ended: `total = attributed + foreign_netns + forgotten + unaccounted`, where `unaccounted` must be 0. The
/// terms after `forgotten` are in none of those.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LibraryAccounts {
    pub total: u64,
    /// In a group.
    pub attributed: u64,
    /// In a namespace that is not this node's.
    pub foreign_netns: u64,
    /// Their name was forgotten because the window was full.
    pub forgotten: u64,
    /// Not followed: too many calls were under way.
    pub no_room: u64,
    /// Not read in time.
    pub ring_full: u64,
    /// Counted without the name, which was not in memory.
    pub nameless: u64,
    /// Calls that never came to an end, such as those of killed processes.
    pub unfinished: u64,
}

impl LibraryAccounts {
    /// What the identity cannot explain; 0 unless a counter lies.
    pub fn unaccounted(&self) -> i64 {
        self.total.cast_signed() - (self.attributed + self.foreign_netns + self.forgotten).cast_signed()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LibraryGroup {
    pub netns: Owner,
    pub call: LibraryCall,
    /// As the program wrote it; cut after 127 bytes.
    pub name: String,
    /// Of a lookup `EAI_*` as netdb.h numbers it: 0 found, -2 `EAI_NONAME`, -3 `EAI_AGAIN`. Of a handshake 1 for success, and what
    /// its last step returned before the client freed it without success: 0, -1.
    pub result: i32,
    pub times: u64,
    /// All of them together.
    pub total_us: u64,
    pub first_at: Timestamp,
    pub last_at: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LibraryCall {
    /// `getaddrinfo`.
    Lookup,
    /// From a client's first `SSL_do_handshake` to success, or to `SSL_free` without it.
    Handshake,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbedFile {
    /// In the mount namespace of its process.
    pub path: String,
    pub device: String,
    pub inode: u64,
    /// Why it is not probed; empty when it is.
    #[serde(default)]
    pub why_not: String,
}
