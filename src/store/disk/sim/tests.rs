use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::*;

const POINT: SyncPoint = SyncPoint::GroupCommit;

fn rng(seed: u64) -> SmallRng {
    SmallRng::seed_from_u64(seed)
}

/// A disk with a durable file `a` of 2,000 ones.
fn disk() -> (SimDisk, SimFile) {
    let disk = SimDisk::new();
    let file = disk.create("a", 0).expect("new");
    file.write_at(&[1; 2_000], 0).expect("works");
    file.sync(POINT).expect("works");
    disk.sync_dir(POINT).expect("works");
    (disk, file)
}

#[test]
fn what_is_synced_survives_and_the_rest_is_lost_torn_or_kept() {
    let (mut lost, mut torn, mut kept) = (0, 0, 0);
    for seed in 0..200 {
        let (disk, file) = disk();
        file.write_at(&[2; 1_500], 1_000).expect("works");
        disk.crash(&mut rng(seed));
        assert!(file.read_at(&mut [0], 0).is_err(), "a file of the process before the crash");
        let content = disk.content("a").expect("durable");
        assert_eq!(content[..1_000], [1; 1_000]);
        assert!(content[1_000..content.len().min(2_000)].iter().all(|&byte| byte == 1 || byte == 2));
        match content[1_000..].iter().map(|byte| usize::from(*byte == 2)).sum::<usize>() {
            0 => lost += 1,
            1_500 => kept += 1,
            _ => torn += 1,
        }
    }
    assert!(lost > 20 && torn > 20 && kept > 20, "{lost} lost, {torn} torn, {kept} kept");
}

#[test]
fn entries_survive_one_by_one_and_a_rename_shows_one_name() {
    let mut seen = BTreeSet::new();
    for seed in 0..200 {
        let (disk, _) = disk();
        disk.create("b", 0).expect("new");
        disk.rename("a", "c").expect("there");
        disk.crash(&mut rng(seed));
        let names = disk.list().expect("works");
        assert!(names.contains(&"a".to_owned()) != names.contains(&"c".to_owned()), "{names:?}");
        seen.insert(names);
    }
    assert_eq!(seen.len(), 4, "each may survive without the other");
}

#[test]
fn the_death_of_the_process_alone_loses_nothing_yet() {
    let (disk, file) = disk();
    file.write_at(&[2], 0).expect("works");
    disk.kill();
    assert_eq!(disk.content("a").expect("there")[0], 2);
    disk.crash_with(Loss::All, &mut rng(1));
    assert_eq!(disk.content("a").expect("there")[0], 1);
}

#[test]
fn a_failed_sync_drops_what_reads_still_show() {
    let (disk, file) = disk();
    file.write_at(&[2], 0).expect("works");
    disk.fail_next_sync(POINT);
    assert!(file.sync(POINT).is_err());
    file.sync(POINT).expect("the next one says that all is well");
    assert_eq!(disk.content("a").expect("there")[0], 2);
    disk.crash_with(Loss::Nothing, &mut rng(1));
    assert_eq!(disk.content("a").expect("there")[0], 1);
}

#[test]
fn a_full_disk_leaves_nothing_behind() {
    let (disk, file) = disk();
    disk.set_capacity(Some(3_000));
    assert_eq!(disk.create("b", 1_001).expect_err("full").kind(), io::ErrorKind::StorageFull);
    assert_eq!(file.write_at(&[0; 1_001], 2_000).expect_err("full").kind(), io::ErrorKind::StorageFull);
    file.write_at(&[0; 2_000], 0).expect("overwriting needs no space");
    assert_eq!((disk.list().expect("works"), disk.used()), (vec!["a".to_owned()], 2_000));
    disk.create("b", 1_000).expect("fits");
}

#[test]
fn from_the_chosen_operation_on_everything_fails() {
    let (disk, file) = disk();
    disk.crash_at(disk.operations() + 1);
    file.write_at(&[2], 0).expect("the last one");
    assert!(!disk.is_down());
    assert!(file.sync(POINT).is_err() && disk.is_down());
    assert!(file.read_at(&mut [0], 0).is_err() && disk.list().is_err());
    disk.crash_with(Loss::All, &mut rng(1));
    assert_eq!(disk.content("a").expect("works again")[0], 1);
}
