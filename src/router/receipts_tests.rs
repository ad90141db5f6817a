//! The window and the fence, without a link.

use super::*;

#[test]
fn only_what_was_sent_can_be_acknowledged() {
    let mut window = Window { newest: Seq(10), ..Window::default() };
    assert_eq!(window.acknowledge(Seq(10)).expect("the start"), None);
    for cursor in [20, 30, 40] {
        window.note_sent(Seq(cursor));
    }
    assert_eq!(window.acknowledge(Seq(35)).expect("between"), Some(Seq(30)));
    assert_eq!(window.acknowledge(Seq(30)).expect("again"), None);
    assert_eq!(window.sent, [Seq(40)]);
    assert!(matches!(window.acknowledge(Seq(41)), Err(LinkError::Cursor(_))));
    assert_eq!(window.acknowledge(Seq(40)).expect("the newest"), Some(Seq(40)));
}

#[test]
fn the_newest_reader_wins_and_epochs_grow() {
    let registry = StreamRegistry::default();
    let main: Arc<str> = "main".into();
    let first = registry.enter(&main, 1_000);
    assert!(first.is_newest());
    let second = registry.enter(&main, 1_000);
    assert!(!first.is_newest() && second.is_newest());
    assert!(second.epoch > first.epoch);
    let other = registry.enter(&"other".into(), 1_000);
    assert!(second.is_newest() && other.is_newest());
    // After a restart the registry is empty, but time went on.
    assert!(StreamRegistry::default().enter(&main, 2_000).epoch > second.epoch);
}
