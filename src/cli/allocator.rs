//! Has the C library's allocator give back what is freed.
//!
//! glibc maps large pieces one by one and unmaps them when they are freed, but for pieces below a threshold that it raises with each one that is freed,
//! up to 32 MiB; and each thread may then keep twice as much. So a process that has seen a few large batches holds far more than it uses. Given
//! in the environment the thresholds stay as they are. They are read before the program begins: so the program starts itself once more, as the
//! same process.
//!
//! Measured with an earlier state of `tests/e2e/overload.rs` and a budget of 128 MiB, the most that was resident: 109 to 135 MB as glibc does it by
//! itself, 89 to 100 with both thresholds at 128 KiB. With those below (4 to 8 times that, so that it asks the kernel less often) it was 76 to 83 MB
//! (112 MiB of budget) where 71 and 77 were it with 128 KiB. Rejected: mimalloc (201 to 213 MB where glibc had 109 to 135); `mallopt`, which needs unsafe code.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Bytes of a piece that is mapped by itself, and of what is free at the end of a thread's memory before it is given back.
const THRESHOLDS: [(&str, &str); 2] =
    [("MALLOC_MMAP_THRESHOLD_", "524288"), ("MALLOC_TRIM_THRESHOLD_", "1048576")];

/// Starts this program again with the allocator's thresholds, unless somebody has given them already. Comes back if there is nothing to do; and if it
/// can't be done, with the reason.
pub(super) fn give_back() -> Result<(), std::io::Error> {
    let given = |(name, _): &(&str, &str)| std::env::var_os(name).is_some();
    if !cfg!(target_env = "gnu") || THRESHOLDS.iter().any(given) {
        return Ok(());
    }
    let mut args = std::env::args_os();
    let name = args.next();
    let mut again = Command::new(std::env::current_exe()?);
    again.arg0(name.as_deref().unwrap_or_else(|| OsStr::new("mooring"))).args(args).envs(THRESHOLDS);
    // Only if it failed.
    Err(again.exec())
}
