//! Two limiters, as two machines would have them, share one quota in Redis:
//! `cargo run -p tower-bucket-redis --example shared -- redis://127.0.0.1/`.

use tower_bucket::Quota;
use tower_bucket_redis::RedisLimiter;

#[tokio::main(flavor = "current_thread")]
async fn main() -> redis::RedisResult<()> {
    let url = std::env::args().nth(1);
    let client = redis::Client::open(url.as_deref().unwrap_or("redis://127.0.0.1/"))?;
    let quota = Quota::per_minute(5);
    let one = RedisLimiter::<str, _>::new(client.get_connection_manager().await?, "example", quota);
    let two = RedisLimiter::<str, _>::new(client.get_connection_manager().await?, "example", quota);

    for number in 1..=4 {
        for (name, limiter) in [("one", &one), ("two", &two)] {
            match limiter.check_key("alice").await {
                Ok(admitted) => println!(
                    "{name}: request {number} passes, {} left",
                    admitted.remaining()
                ),
                Err(exhausted) => println!(
                    "{name}: request {number} rejected, retry after {:?}",
                    exhausted.retry_after()
                ),
            }
        }
    }
    Ok(())
}
