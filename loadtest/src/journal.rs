//! What an edge has written to its journal. Its segments are preallocated zeros, so neither their length nor their blocks say it: what counts
//! is what comes before the zeros at the end. (A record could end in zeros itself: then the figure is some bytes too low.)

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes that are looked at at a time, from the end.
const BLOCK: usize = 64 * 1024;

/// Bytes of all segments of this data directory, without the zeros at their ends. Spare ones are no segments yet.
pub(crate) fn written(dir: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().starts_with("journal-") {
            continue;
        }
        match File::open(entry.path()) {
            Ok(file) => bytes += before_zeros(&file)?,
            // Trimmed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(bytes)
}

fn before_zeros(file: &File) -> io::Result<u64> {
    let mut end = file.metadata()?.len();
    let mut block = vec![0; BLOCK];
    while end > 0 {
        let start = end.saturating_sub(BLOCK as u64);
        let block = &mut block[..(end - start) as usize];
        file.read_exact_at(block, start)?;
        if let Some(last) = block.iter().rposition(|byte| *byte != 0) {
            return Ok(start + last as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_at_the_ends_of_segments_and_spares_do_not_count() {
        let scratch = mooring::client::local::Scratch::new(None).expect("a directory");
        let file = |name: &str, bytes: &[u8]| fs::write(scratch.dir().join(name), bytes).expect("written");
        let mut long = vec![0; 3 * BLOCK + 7];
        long[BLOCK] = 1;
        file("journal-1.seg", &long);
        file("journal-2.seg", &[1, 0, 2, 0, 0]);
        file("journal-3.seg", &[0; 100]);
        file("journal-4.seg", &[]);
        file("spare-5.seg", &[1; 50]);
        assert_eq!(written(scratch.dir()).expect("read"), BLOCK as u64 + 1 + 3);
    }
}
