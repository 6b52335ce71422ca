//! RPCs that are not built yet: each answers UNIMPLEMENTED by name. `unimplemented.txt` lists them and only shrinks.

/// A method of the service that answers UNIMPLEMENTED. Written as `async_trait` would write it, since an attribute does
/// not see into a macro.
macro_rules! unimplemented_rpc {
    ($method:ident, $request:ty, $answer:ty) => {
        fn $method<'a, 'b>(
            &'a self,
            _: Request<$request>,
        ) -> std::pin::Pin<Box<dyn Future<Output = Answer<$answer>> + Send + 'b>>
        where
            'a: 'b,
            Self: 'b,
        {
            Box::pin(async { Err(Status::unimplemented(concat!(stringify!($method), " is not built yet"))) })
        }
    };
}
