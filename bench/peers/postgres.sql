-- The job that the comparison gives PostgreSQL: hold the money, store the order under the client's key, answer.
-- A key that was used gives its first answer again, as ours does.
CREATE TABLE accounts (
    id   integer PRIMARY KEY,
    cash bigint NOT NULL CHECK (cash >= 0),
    held bigint NOT NULL DEFAULT 0 CHECK (held >= 0 AND held <= cash)
) WITH (fillfactor = 50);  -- room for updates in place

CREATE TABLE orders (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    account    integer NOT NULL,
    client_key bigint NOT NULL,
    symbol     integer NOT NULL,
    side       "char" NOT NULL,
    quantity   bigint NOT NULL,
    price      bigint NOT NULL,
    status     smallint NOT NULL,  -- 0 new, 1 refused: not enough money
    placed_at  timestamptz NOT NULL DEFAULT now(),
    UNIQUE (account, client_key)
);

CREATE FUNCTION place_order(whose integer, key bigint, what integer, way "char", qty bigint, at bigint,
                            OUT order_id bigint, OUT order_status smallint)
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE accounts SET held = held + qty * at WHERE id = whose AND cash - held >= qty * at;
    order_status := CASE WHEN FOUND THEN 0 ELSE 1 END;
    INSERT INTO orders (account, client_key, symbol, side, quantity, price, status)
    VALUES (whose, key, what, way, qty, at, order_status)
    RETURNING id INTO order_id;
EXCEPTION WHEN unique_violation THEN  -- undoes the hold, too
    SELECT id, status INTO order_id, order_status FROM orders WHERE account = whose AND client_key = key;
END $$;

INSERT INTO accounts (id, cash) SELECT n, 1000000000000000 FROM generate_series(0, 1023) AS n;
