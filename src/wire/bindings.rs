//! Bind and Unbind of devices: what they may say. A wrong one is answered, and ends no session.

use std::sync::Arc;

use super::pb::device as pb;
use crate::binding::{Binding, Change, Unbind, is_bindable};

/// No binding at all is one of a later version.
pub(super) fn parse_bind(binding: Option<pb::bind::Binding>) -> Result<Box<Change>, pb::ErrorCode> {
    let binding = match binding.ok_or(pb::ErrorCode::Unimplemented)? {
        pb::bind::Binding::Account(text) => Binding::Account(bindable(text)?),
        pb::bind::Binding::Alias(text) => Binding::Alias(bindable(text)?),
        pb::bind::Binding::Tag(text) => Binding::Tag(bindable(text)?),
        pb::bind::Binding::Phone(text) => Binding::Phone(bindable(text)?),
    };
    Ok(Box::new(Change::Bind(binding)))
}

pub(super) fn parse_unbind(binding: Option<pb::unbind::Binding>) -> Result<Box<Change>, pb::ErrorCode> {
    let what = match binding.ok_or(pb::ErrorCode::Unimplemented)? {
        pb::unbind::Binding::Account(text) => Unbind::Account(bindable(text)?),
        pb::unbind::Binding::Alias(text) => Unbind::Alias(bindable(text)?),
        pb::unbind::Binding::Tag(text) => Unbind::Tag(bindable(text)?),
        pb::unbind::Binding::Phone(true) => Unbind::Phone,
        pb::unbind::Binding::Phone(false) => return Err(pb::ErrorCode::Invalid),
    };
    Ok(Box::new(Change::Unbind(what)))
}

fn bindable(text: String) -> Result<Arc<str>, pb::ErrorCode> {
    if is_bindable(&text) { Ok(text.into()) } else { Err(pb::ErrorCode::Invalid) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::device::{ToEdge, parse};
    use proptest::prelude::*;
    use prost::Message;

    fn parsed(frame: pb::to_edge::Frame) -> Result<Change, pb::ErrorCode> {
        match parse(&pb::ToEdge { frame: Some(frame) }.encode_to_vec()) {
            Ok(ToEdge::Request { request_id: 7, change }) => change.map(|change| *change),
            other => panic!("{other:?}"),
        }
    }

    fn bind(binding: Option<pb::bind::Binding>) -> Result<Change, pb::ErrorCode> {
        parsed(pb::to_edge::Frame::Bind(pb::Bind { request_id: 7, binding }))
    }

    fn unbind(binding: Option<pb::unbind::Binding>) -> Result<Change, pb::ErrorCode> {
        parsed(pb::to_edge::Frame::Unbind(pb::Unbind { request_id: 7, binding }))
    }

    #[test]
    fn each_kind_is_read_and_wrong_content_is_a_reply_not_an_end() {
        let text = || "阿里 1".to_owned();
        assert_eq!(
            bind(Some(pb::bind::Binding::Account(text()))),
            Ok(Change::Bind(Binding::Account(text().into())))
        );
        assert_eq!(
            bind(Some(pb::bind::Binding::Phone(text()))),
            Ok(Change::Bind(Binding::Phone(text().into())))
        );
        assert_eq!(
            unbind(Some(pb::unbind::Binding::Tag(text()))),
            Ok(Change::Unbind(Unbind::Tag(text().into())))
        );
        assert_eq!(unbind(Some(pb::unbind::Binding::Phone(true))), Ok(Change::Unbind(Unbind::Phone)));
        for wrong in ["", "a\u{0}b", &"x".repeat(129)] {
            let wrong = || wrong.to_owned();
            assert_eq!(bind(Some(pb::bind::Binding::Alias(wrong()))), Err(pb::ErrorCode::Invalid));
            assert_eq!(unbind(Some(pb::unbind::Binding::Account(wrong()))), Err(pb::ErrorCode::Invalid));
        }
        assert_eq!(unbind(Some(pb::unbind::Binding::Phone(false))), Err(pb::ErrorCode::Invalid));
        // One of a later version decodes as none.
        assert_eq!(bind(None), Err(pb::ErrorCode::Unimplemented));
        assert_eq!(unbind(None), Err(pb::ErrorCode::Unimplemented));
    }

    proptest! {
        /// Whatever stands in the frame: no panic, and what passes can be bound.
        #[test]
        fn no_bytes_make_it_panic_and_no_text_passes_unchecked(
            tag in 6u8..=7,
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            text in ".{0,200}",
            kind in 2u8..=5,
        ) {
            let of = |inner: &[u8]| {
                let mut frame = vec![tag << 3 | 2];
                prost::encoding::encode_varint(inner.len() as u64, &mut frame);
                frame.extend_from_slice(inner);
                parse(&frame)
            };
            let _parsed = of(&bytes);
            let mut inner = vec![8, 7, kind << 3 | 2];
            prost::encoding::encode_varint(text.len() as u64, &mut inner);
            inner.extend_from_slice(text.as_bytes());
            match of(&inner) {
                Ok(ToEdge::Request { request_id, change }) => {
                    prop_assert_eq!((request_id, change.is_ok()), (7, is_bindable(&text)));
                }
                // Unbind names no phone number: that field is no text.
                Err(_) => prop_assert!(tag == 7 && kind == 5),
                Ok(other) => prop_assert!(false, "{:?}", other),
            }
        }
    }
}
