#!/bin/sh
set -eu

# edge: ServiceAccount channels/eu-edge
aws iam get-role --role-name realtime-channels-eu-edge >/dev/null 2>&1 ||
  aws iam create-role --role-name realtime-channels-eu-edge --path / --assume-role-policy-document '{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Service":"pods.eks.amazonaws.com"},"Action":["sts:AssumeRole","sts:TagSession"]}]}'
aws iam put-role-policy --role-name realtime-channels-eu-edge --policy-name realtime-channels-eu-edge-access --policy-document '{"Version":"2012-10-17","Statement":[{"Sid":"Stream","Effect":"Allow","Action":["kinesis:DescribeStreamSummary","kinesis:PutRecords"],"Resource":"arn:aws:kinesis:eu-west-1:123456789012:stream/events"},{"Sid":"Key","Effect":"Allow","Action":["kms:GenerateDataKey"],"Resource":"arn:aws:kms:eu-west-1:123456789012:key/*","Condition":{"ForAnyValue:StringEquals":{"kms:ResourceAliases":"alias/chat"}}}]}'
at="--region eu-west-1 --cluster-name prod --namespace channels --service-account eu-edge"
[ "$(aws eks list-pod-identity-associations $at --query 'length(associations)')" != 0 ] ||
  aws eks create-pod-identity-association $at \
  --role-arn "$(aws iam get-role --role-name realtime-channels-eu-edge --query Role.Arn --output text)"

# dispatcher: ServiceAccount channels/eu-dispatcher
aws iam get-role --role-name realtime-channels-eu-dispatcher >/dev/null 2>&1 ||
  aws iam create-role --role-name realtime-channels-eu-dispatcher --path / --assume-role-policy-document '{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Service":"pods.eks.amazonaws.com"},"Action":["sts:AssumeRole","sts:TagSession"]}]}'
aws iam put-role-policy --role-name realtime-channels-eu-dispatcher --policy-name realtime-channels-eu-dispatcher-access --policy-document '{"Version":"2012-10-17","Statement":[{"Sid":"Stream","Effect":"Allow","Action":["kinesis:DescribeStreamSummary","kinesis:GetRecords","kinesis:GetShardIterator","kinesis:ListShards"],"Resource":"arn:aws:kinesis:eu-west-1:123456789012:stream/events"},{"Sid":"DeadLetters","Effect":"Allow","Action":["kinesis:PutRecords"],"Resource":"arn:aws:kinesis:eu-west-1:123456789012:stream/events-dead-letter"},{"Sid":"Key","Effect":"Allow","Action":["kms:Decrypt","kms:GenerateDataKey"],"Resource":"arn:aws:kms:eu-west-1:123456789012:key/*","Condition":{"ForAnyValue:StringEquals":{"kms:ResourceAliases":"alias/chat"}}}]}'
at="--region eu-west-1 --cluster-name prod --namespace channels --service-account eu-dispatcher"
[ "$(aws eks list-pod-identity-associations $at --query 'length(associations)')" != 0 ] ||
  aws eks create-pod-identity-association $at \
  --role-arn "$(aws iam get-role --role-name realtime-channels-eu-dispatcher --query Role.Arn --output text)"

# operator: ServiceAccount realtime-operator/realtime-operator
aws iam get-role --role-name realtime-operator >/dev/null 2>&1 ||
  aws iam create-role --role-name realtime-operator --path / --assume-role-policy-document '{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Service":"pods.eks.amazonaws.com"},"Action":["sts:AssumeRole","sts:TagSession"]}]}'
aws iam put-role-policy --role-name realtime-operator --policy-name realtime-channels-eu-operator-access --policy-document '{"Version":"2012-10-17","Statement":[{"Sid":"Stream","Effect":"Allow","Action":["kinesis:AddTagsToStream","kinesis:CreateStream","kinesis:DecreaseStreamRetentionPeriod","kinesis:DescribeStreamSummary","kinesis:GetRecords","kinesis:GetShardIterator","kinesis:IncreaseStreamRetentionPeriod","kinesis:ListShards","kinesis:ListTagsForStream","kinesis:RemoveTagsFromStream","kinesis:StartStreamEncryption","kinesis:UpdateShardCount","kinesis:UpdateStreamMode"],"Resource":"arn:aws:kinesis:eu-west-1:123456789012:stream/events"},{"Sid":"DeadLetters","Effect":"Allow","Action":["kinesis:AddTagsToStream","kinesis:CreateStream","kinesis:DescribeStreamSummary","kinesis:IncreaseStreamRetentionPeriod","kinesis:ListTagsForStream","kinesis:RemoveTagsFromStream","kinesis:StartStreamEncryption","kinesis:UpdateShardCount","kinesis:UpdateStreamMode"],"Resource":"arn:aws:kinesis:eu-west-1:123456789012:stream/events-dead-letter"},{"Sid":"Key","Effect":"Allow","Action":["kms:Decrypt","kms:DescribeKey"],"Resource":"arn:aws:kms:eu-west-1:123456789012:key/*","Condition":{"ForAnyValue:StringEquals":{"kms:ResourceAliases":"alias/chat"}}}]}'
aws iam put-role-policy --role-name realtime-operator --policy-name realtime-channels-eu-operator-delete --policy-document '{"Version":"2012-10-17","Statement":[{"Sid":"Stream","Effect":"Allow","Action":["kinesis:DeleteStream"],"Resource":"arn:aws:kinesis:eu-west-1:123456789012:stream/events"},{"Sid":"DeadLetters","Effect":"Allow","Action":["kinesis:DeleteStream"],"Resource":"arn:aws:kinesis:eu-west-1:123456789012:stream/events-dead-letter"}]}'
aws iam put-role-policy --role-name realtime-operator --policy-name realtime-channels-eu-operator-dead-letter-proof --policy-document '{"Version":"2012-10-17","Statement":[{"Sid":"Stream","Effect":"Allow","Action":["kinesis:PutRecords"],"Resource":"arn:aws:kinesis:eu-west-1:123456789012:stream/events"},{"Sid":"DeadLetters","Effect":"Allow","Action":["kinesis:GetRecords","kinesis:GetShardIterator","kinesis:ListShards"],"Resource":"arn:aws:kinesis:eu-west-1:123456789012:stream/events-dead-letter"},{"Sid":"Key","Effect":"Allow","Action":["kms:Decrypt","kms:GenerateDataKey"],"Resource":"arn:aws:kms:eu-west-1:123456789012:key/*","Condition":{"ForAnyValue:StringEquals":{"kms:ResourceAliases":"alias/chat"}}}]}'
at="--region eu-west-1 --cluster-name prod --namespace realtime-operator --service-account realtime-operator"
[ "$(aws eks list-pod-identity-associations $at --query 'length(associations)')" != 0 ] ||
  aws eks create-pod-identity-association $at \
  --role-arn "$(aws iam get-role --role-name realtime-operator --query Role.Arn --output text)"
