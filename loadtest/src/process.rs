//! What the kernel says of the server's process.

use std::fs;

use mooring::cli::output::Failure;

/// What the kernel keeps for a TCP socket that somebody polls, by the names of its caches. Its directory entry (192 bytes) is left out: there are
/// too many others to tell.
const SOCKET_CACHES: [&str; 5] = ["TCP", "sock_inode_cache", "filp", "eventpoll_epi", "eventpoll_pwq"];

/// Bytes of all sockets of this machine in the kernel, without what their buffers hold. `None`: only root may know.
pub(crate) fn socket_bytes() -> Option<u64> {
    parse_slabs(&fs::read_to_string("/proc/slabinfo").ok()?)
}

/// Objects in use times their size, which are the first and the third number of a line.
fn parse_slabs(text: &str) -> Option<u64> {
    let mut bytes = None;
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if !words.next().is_some_and(|name| SOCKET_CACHES.contains(&name)) {
            continue;
        }
        let used: u64 = words.next()?.parse().ok()?;
        let size: u64 = words.nth(1)?.parse().ok()?;
        *bytes.get_or_insert(0) += used * size;
    }
    bytes
}

/// A process that is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Process {
    pid: u32,
}

/// Memory, bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    /// Resident.
    pub(crate) rss: u64,
    /// Resident, what is shared divided by who shares it.
    pub(crate) pss: u64,
}

impl Process {
    /// The process with this id; it must be there.
    pub(crate) fn new(pid: u32) -> Result<Self, Failure> {
        let process = Self { pid };
        process.cpu_us()?;
        Ok(process)
    }

    /// The process with this id, which may be gone: then each question is an error.
    pub(crate) fn unchecked(pid: u32) -> Self {
        Self { pid }
    }

    /// Memory now.
    pub(crate) fn memory(self) -> Result<Memory, Failure> {
        let text = self.read("smaps_rollup")?;
        let field = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            let kib: Option<u64> = line.and_then(|l| l.split_whitespace().nth(1)?.parse().ok());
            kib.map(|kib| kib * 1024).ok_or_else(|| self.odd("smaps_rollup"))
        };
        Ok(Memory { rss: field("Rss:")?, pss: field("Pss:")? })
    }

    /// What is resident, bytes: less than [`Self::memory`] says, and cheap to ask for.
    pub(crate) fn resident(self) -> Result<u64, Failure> {
        let text = self.read("statm")?;
        let pages = text.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
        let pages = pages.ok_or_else(|| self.odd("statm"))?;
        Ok(pages * rustix::param::page_size() as u64)
    }

    /// Open descriptors.
    pub(crate) fn descriptors(self) -> Result<u64, Failure> {
        self.entries("fd")
    }

    /// Descriptors that it may open, if it raises its limit as far as it may. `None`: no limit, or it isn't known.
    pub(crate) fn most_descriptors(self) -> Option<u64> {
        let text = self.read("limits").ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
        line.split_whitespace().nth(1)?.parse().ok()
    }

    /// Threads.
    pub(crate) fn threads(self) -> Result<u64, Failure> {
        self.entries("task")
    }

    fn entries(self, dir: &str) -> Result<u64, Failure> {
        let path = format!("/proc/{}/{dir}", self.pid);
        let entries = fs::read_dir(&path).map_err(|e| Failure::failed(format!("{path}: {e}")))?;
        Ok(entries.count() as u64)
    }

    /// User and system time of all its threads, those that ended included, microseconds.
    pub(crate) fn cpu_us(self) -> Result<u64, Failure> {
        let text = self.read("stat")?;
        // The second field is the name in parentheses, which may hold anything.
        let fields = text.rsplit_once(')').map_or("", |(_, rest)| rest);
        let ticks = |n: usize| fields.split_whitespace().nth(n).and_then(|f| f.parse::<u64>().ok());
        // utime and stime are fields 14 and 15.
        let (user, system) = ticks(11).zip(ticks(12)).ok_or_else(|| self.odd("stat"))?;
        Ok((user + system) * 1_000_000 / rustix::param::clock_ticks_per_second().max(1))
    }

    fn read(self, file: &str) -> Result<String, Failure> {
        let path = format!("/proc/{}/{file}", self.pid);
        fs::read_to_string(&path).map_err(|e| Failure::failed(format!("{path}: {e}")))
    }

    fn odd(self, file: &str) -> Failure {
        Failure::failed(format!("/proc/{}/{file} is not understood", self.pid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_and_time() {
        let process = Process::new(std::process::id()).expect("this process");
        let memory = process.memory().expect("memory");
        assert!(process.resident().expect("memory") > 100_000);
        assert!(memory.rss > 100_000 && memory.pss > 0 && memory.pss <= memory.rss);
        assert!(process.descriptors().expect("descriptors") > 2 && process.threads().expect("threads") > 0);
        assert!(process.most_descriptors().is_none_or(|most| most > 2));
        assert!(Process::new(u32::MAX).is_err());
    }

    #[test]
    fn the_caches_of_sockets_are_summed() {
        let text = "slabinfo - version: 2.1\n\
            # name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> : tunables\n\
            TCPv6                 13     13   2496   13    8 : tunables    0    0    0\n\
            TCP                  100    104   2368   13    8 : tunables    0    0    0\n\
            filp                1000   1554    192   21    1 : tunables    0    0    0\n";
        assert_eq!(parse_slabs(text), Some(100 * 2_368 + 1_000 * 192));
        assert_eq!(parse_slabs("slabinfo - version: 2.1\n"), None);
    }
}
