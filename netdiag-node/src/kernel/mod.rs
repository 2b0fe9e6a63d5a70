//! The kernel programs from the agent's side: loading them on this kernel, reading their tables, naming what they saw.
//!
//! Nothing is pinned: when the agent ends, however it ends, the kernel removes the programs and their tables.

use netdiag_common::GapReason;
use netdiag_common::observation::preflight::Check;

use crate::host::ReadError;

pub mod btf;
mod exemplar;
mod failure;
mod key;
pub mod kfree_skb;
mod layout;
mod program;
pub mod symbols;
mod table;

pub use kfree_skb::{KernelDrops, NetnsId};
pub use program::TableSize;

/// Why the kernel programs do not run. None of it is worth a retry: report a gap, with [`LoadError::remedy`].
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("this binary was built without kernel programs")]
    NotBuilt,
    #[error("the kernel's type information is not readable: {0}")]
    NoBtf(ReadError),
    #[error("the kernel's type information in /sys/kernel/btf/vmlinux is damaged: {0}")]
    DamagedBtf(btf::BtfError),
    #[error("this kernel's struct {structure} has no member {member} of the expected size")]
    Member { structure: &'static str, member: &'static str },
    #[error("cannot {step}: operation not permitted")]
    NotPermitted { step: String },
    #[error("cannot {step}: {why}")]
    Failed { step: String, why: String },
}

impl LoadError {
    /// What to do so that drops can be seen.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::NotBuilt => "run cargo xtask ebpf first, then build the agent again",
            Self::NoBtf(_) => "use a kernel with CONFIG_DEBUG_INFO_BTF=y, and mount /sys",
            Self::DamagedBtf(_) | Self::Member { .. } => {
                "report this kernel's version and its /sys/kernel/btf/vmlinux to the netdiag project"
            }
            Self::NotPermitted { .. } => {
                "give the agent the capabilities BPF and PERFMON (SYS_ADMIN before Linux 5.8), and check that neither a \
                 seccomp profile nor lockdown=confidentiality forbids bpf()"
            }
            Self::Failed { .. } => "use Linux 5.10 or newer with CONFIG_BPF_SYSCALL=y; the message says what failed",
        }
    }

    pub fn gap_reason(&self) -> GapReason {
        match self {
            Self::NotBuilt | Self::Failed { .. } => GapReason::Failed,
            Self::NoBtf(_) | Self::Member { .. } => GapReason::Kernel,
            Self::DamagedBtf(_) => GapReason::Malformed,
            Self::NotPermitted { .. } => GapReason::Rights,
        }
    }
}

/// The line of the preflight report about this program.
pub fn check(loaded: &Result<KernelDrops, LoadError>) -> Check {
    let name = "program kfree_skb".to_owned();
    match loaded {
        Ok(drops) => Check { name, ok: true, detail: drops.attach().to_owned(), ..Check::default() },
        Err(error) => Check {
            name,
            ok: false,
            detail: error.to_string(),
            lost: "packets dropped by the kernel: how many, why, where".to_owned(),
            remedy: error.remedy().to_owned(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binary_without_programs_says_how_to_get_them() {
        let check = check(&Err(LoadError::NotBuilt));
        assert!(!check.ok);
        assert_eq!(check.detail, "this binary was built without kernel programs");
        assert_eq!(check.remedy, "run cargo xtask ebpf first, then build the agent again");
    }
}
