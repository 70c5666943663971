//! What unit tests share.

use std::fmt::Debug;

/// Takes what a test cannot go on without. Only tests may panic, so the word is theirs alone and a search for
/// its cousins in `src` finds nothing.
pub(crate) trait Must {
    /// What is inside.
    type Inside;

    /// What is inside, or the end of the test.
    fn must(self) -> Self::Inside;
}

impl<T> Must for Option<T> {
    type Inside = T;

    #[track_caller]
    fn must(self) -> T {
        match self {
            Some(inside) => inside,
            None => panic!("nothing is there"),
        }
    }
}

impl<T, E: Debug> Must for Result<T, E> {
    type Inside = T;

    #[track_caller]
    fn must(self) -> T {
        match self {
            Ok(inside) => inside,
            Err(error) => panic!("{error:?}"),
        }
    }
}
