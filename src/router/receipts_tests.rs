//! The window, without a link.

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
