//! What the kernel says of the server's process.

use std::fs;

use mooring::cli::output::Failure;

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
        assert!(memory.rss > 100_000 && memory.pss > 0 && memory.pss <= memory.rss);
        assert!(Process::new(u32::MAX).is_err());
    }
}
